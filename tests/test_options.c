/* A small program of two commands, by hand. */
#define _POSIX_C_SOURCE 200809L
#include "../base/options.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct Arguments {
    bool flag;
    const char *text, *ints;
    size_t size;
    uint64_t u64;
    double number;
    int choice;
    OptionList list;
};

enum { FLAG, TEXT, SIZE, U64, NUMBER, CHOICE, INTS, LIST, ELSEWHERE };

#define AT(field) offsetof(Arguments, field)

static const Option options[] = {
    {"--flag", OPTION_FLAG, AT(flag), NULL, 0, 0, "a flag"},
    {"-t", OPTION_TEXT, AT(text), "TEXT", 0, 0, "a text"},
    {"--size", OPTION_SIZE, AT(size), "N", 2, 100, "a size"},
    {"--u64", OPTION_U64, AT(u64), "S", 0, 0, "a seed"},
    {"--number", OPTION_NUMBER, AT(number), "X", -1, 1, "a number"},
    {"--choice", OPTION_CHOICE, AT(choice), "red|green|redder", 0, 0,
     "a choice whose help is long enough to be folded at the right margin, "
     "and more than once, so that the last line is short"},
    {"--ints", OPTION_INTS, AT(ints), "1,2", 0, 0, "numbers"},
    {"--list", OPTION_LIST, AT(list), "TEXT", 0, 0, "a list"},
    {"--elsewhere", OPTION_FLAG, AT(flag), NULL, 0, 0, "the other's"},
};

static int run(const Arguments *a, Error *err)
{
    (void)a;
    (void)err;
    return 0;
}

static const Command commands[] = {
    {.name = "go", .operands = "A [B]", .least = 1, .most = 2,
     .options = 0xff, .summary = "goes", .text = "Goes.\n.dot first",
     .run = run},
    {.name = "pick", .operands = "", .most = 0,
     .options = 1 << TEXT | 1 << INTS | 1 << SIZE | 1 << ELSEWHERE,
     .wanted = 1 << TEXT | 1 << INTS, .also = 1 << SIZE, .summary = "picks",
     .text = "Picks.", .run = run},
};

static const Program program = {"prog", "does things", commands, 2, options,
                                sizeof options / sizeof options[0]};

enum { MAX_WORDS = 48 };

/* Parses words that blanks separate; '_' stands for a blank in a word. */
static int parse(CommandLine *line, Arguments *a, const char *words,
                 Error *err)
{
    static char buffer[512];
    char *argv[MAX_WORDS] = {buffer};
    int argc = 0;
    snprintf(buffer, sizeof buffer, "prog %s", words);
    for (char *w = strtok(buffer, " "); w != NULL; w = strtok(NULL, " ")) {
        for (char *c = w; *c != '\0'; c++)
            if (*c == '_')
                *c = ' ';
        assert_true(argc < MAX_WORDS);
        argv[argc++] = w;
    }
    *a = (Arguments){0};
    return options_parse(line, a, &program, argc, argv, err);
}

static Arguments accepted(const char *words, CommandLine *line)
{
    Arguments a;
    Error err;
    if (parse(line, &a, words, &err) != 0)
        fail_msg("%s: %s", words, err.text);
    return a;
}

static void values(void **state)
{
    CommandLine line;
    Arguments a = accepted("go --flag -t hello_you x --size=7 --u64 "
                           "18446744073709551615 --number -0.5 --choice "
                           "redder --ints 1,2_3 --list a --list b", &line);
    (void)state;
    assert_int_equal(line.action, LINE_RUN);
    assert_ptr_equal(line.command, &commands[0]);
    assert_true(a.flag);
    assert_string_equal(a.text, "hello you");
    assert_int_equal(a.size, 7);
    assert_true(a.u64 == UINT64_MAX);
    assert_true(a.number == -0.5);
    assert_int_equal(a.choice, 2);
    assert_string_equal(a.ints, "1,2 3");
    assert_int_equal(a.list.n, 2);
    assert_string_equal(a.list.text[1], "b");
    assert_true(option_given(&line, U64));
    assert_false(option_given(&line, ELSEWHERE));
}

static void operands(void **state)
{
    CommandLine line;
    (void)state;
    accepted("go x --flag y", &line);
    assert_int_equal(line.n_operands, 2);
    accepted("go -- --flag -t", &line);
    assert_int_equal(line.n_operands, 2);
    assert_false(option_given(&line, FLAG));
    accepted("go -", &line);
    assert_int_equal(line.n_operands, 1);
    assert_string_equal(accepted("go x -t -", &line).text, "-");
    assert_string_equal(accepted("go x -t --help", &line).text, "--help");
}

static const struct {
    const char *words, *message;
} refused[] = {
    {"", "a command is wanted (prog --help lists them)"},
    {"fly", "unknown command 'fly' (prog --help lists them)"},
    {"--fly", "unknown option '--fly' (prog --help lists what there is)"},
    {"--help x", "'x' is one too many"},
    {"--completion fish", "--completion wants one of bash"},
    {"--completion", "--completion wants one of bash"},
    {"go", "go wants A [B] (prog go --help says more)"},
    {"go x y z", "go takes A [B], and 'z' is one too many"},
    {"go x --fla", "go has no option '--fla' (prog go --help lists its "
     "options)"},
    {"go x --flags=1", "go has no option '--flags' (prog go --help lists its "
     "options)"},
    {"go x --elsewhere", "go has no option '--elsewhere' (prog go --help "
     "lists its options)"},
    {"go x --flag=1", "--flag takes no value, but is given '1'"},
    {"go x --size", "--size wants a value: N"},
    {"go x --size 3 --size 4", "--size is given twice"},
    {"go x --size 1", "--size wants a whole number from 2 to 100, not '1'"},
    {"go x --size 101", "--size wants a whole number from 2 to 100, not "
     "'101'"},
    {"go x --size -3", "--size wants a whole number from 2 to 100, not "
     "'-3'"},
    {"go x --size 3x", "--size wants a whole number from 2 to 100, not "
     "'3x'"},
    {"go x --size=", "--size wants a whole number from 2 to 100, not ''"},
    {"go x --size 18446744073709551616", "--size wants a whole number from 2 "
     "to 100, not '18446744073709551616'"},
    {"go x --u64 -1", "--u64 wants a whole number of at most 64 bits, not "
     "'-1'"},
    {"go x --u64 18446744073709551616", "--u64 wants a whole number of at "
     "most 64 bits, not '18446744073709551616'"},
    {"go x --number 1.5", "--number wants a number from -1 to 1, not '1.5'"},
    {"go x --number nan", "--number wants a number from -1 to 1, not 'nan'"},
    {"go x --number 0.5f", "--number wants a number from -1 to 1, not "
     "'0.5f'"},
    {"go x --number=", "--number wants a number from -1 to 1, not ''"},
    {"go x --number _1", "--number wants a number from -1 to 1, not ' 1'"},
    {"go x --choice re", "--choice wants one of red|green|redder, not 're'"},
    {"go x --choice=", "--choice wants one of red|green|redder, not ''"},
    {"go x --ints 1,", "--ints wants whole numbers as in 1,2,3, not '1,'"},
    {"go x --ints -1", "--ints wants whole numbers as in 1,2,3, not '-1'"},
    {"go x --ints=", "--ints wants whole numbers as in 1,2,3, not ''"},
    {"go x --ints a", "--ints wants whole numbers as in 1,2,3, not 'a'"},
    {"pick -t x", "pick wants --size (prog pick --help says more)"},
    {"pick --size 3", "pick wants -t or --ints (prog pick --help says more)"},
    {"pick --size 3 -t x --ints 1", "pick wants only one of -t or --ints"},
};

static void wrong_lines(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        CommandLine line;
        Arguments a;
        Error err = {""};
        if (parse(&line, &a, refused[i].words, &err) != -1 ||
            strcmp(err.text, refused[i].message) != 0)
            fail_msg("%s: %s", refused[i].words, err.text);
    }
}

static void a_list_is_bounded(void **state)
{
    char words[32 * 12] = "go";
    CommandLine line;
    Arguments a;
    Error err;
    (void)state;
    for (int i = 0; i < OPTION_LIST_MAX; i++)
        strcat(words, " --list=1");
    assert_int_equal(parse(&line, &a, strcat(words, " x"), &err), 0);
    strcat(words, " --list=1");
    assert_int_equal(parse(&line, &a, words, &err), -1);
    assert_string_equal(err.text, "--list is given more than 32 times");
}

/* What options_print writes, up to the size of the buffer. */
static const char *printed(const char *words)
{
    static char buffer[1 << 14];
    CommandLine line;
    FILE *f = tmpfile();
    assert_non_null(f);
    accepted(words, &line);
    options_print(&program, &line, f);
    rewind(f);
    buffer[fread(buffer, 1, sizeof buffer - 1, f)] = '\0';
    fclose(f);
    return buffer;
}

static void help(void **state)
{
    (void)state;
    assert_string_equal(printed("pick --help"),
        "usage: prog pick [options]\n\nPicks.\n\noptions:\n"
        "  -t TEXT                 a text\n"
        "  --size N                a size\n"
        "  --ints 1,2              numbers\n"
        "  --elsewhere             the other's\n");
    assert_non_null(strstr(printed("--help"), "  pick "));
}

static void help_is_folded(void **state)
{
    const char *text = printed("go x --help");
    (void)state;
    assert_non_null(strstr(text, "a choice whose help is long enough to be "
                           "folded at\n"));
    for (const char *s = text; *s != '\0'; s += strcspn(s, "\n") + 1)
        assert_true(strcspn(s, "\n") <= 78);
}

/* A line of roff that begins with a dot of the text is no request. */
static void manual_page(void **state)
{
    const char *text = printed("--man");
    (void)state;
    assert_non_null(strstr(text, ".TH prog 1\n"));
    assert_non_null(strstr(text, "\\&.dot first\n"));
    assert_non_null(strstr(text, "\\-\\-choice\n.I red|green|redder\n"));
}

static void completion(void **state)
{
    const char *text = printed("--completion bash");
    (void)state;
    assert_non_null(strstr(text, "pick) words='-t --size --ints --elsewhere "
                           "--help' ;;\n"));
    assert_non_null(strstr(text, "--choice) words='red green redder' ;;\n"));
    assert_non_null(strstr(text, "complete -o default -F _prog prog\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values),
        cmocka_unit_test(operands),
        cmocka_unit_test(wrong_lines),
        cmocka_unit_test(a_list_is_bounded),
        cmocka_unit_test(help),
        cmocka_unit_test(help_is_folded),
        cmocka_unit_test(manual_page),
        cmocka_unit_test(completion),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
