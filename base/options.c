/* options.c: parsing, help, manual page and completion from two tables. */
#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HELP_WIDTH = 78, HELP_COLUMN = 26 };

/* Parsing ---------------------------------------------------------------- */

static const Command *find_command(const Program *p, const char *name)
{
    for (size_t i = 0; i < p->n_commands; i++)
        if (strcmp(p->commands[i].name, name) == 0)
            return &p->commands[i];
    return NULL;
}

/* The index of the option whose name is the n first characters of text. */
static size_t find_option(const Program *p, const char *text, size_t n)
{
    size_t i = 0;
    while (i < p->n_options && (strncmp(p->options[i].name, text, n) != 0 ||
                                p->options[i].name[n] != '\0'))
        i++;
    return i;
}

static bool in_set(uint64_t set, size_t option)
{
    return (set >> option & 1) != 0;
}

static bool takes(const Command *c, size_t option)
{
    return in_set(c->options, option);
}

bool option_given(const CommandLine *line, size_t i)
{
    return in_set(line->given, i);
}

static bool parse_u64(const char *text, uint64_t *value)
{
    if (!isdigit((unsigned char)text[0]))
        return false;
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    *value = v;
    return *end == '\0' && errno == 0 && v <= UINT64_MAX;
}

static int set_u64(void *at, const Option *o, const char *text, Error *err)
{
    uint64_t v;
    if (!parse_u64(text, &v))
        return fail(err, "%s wants a whole number of at most 64 bits, not "
                    "'%s'", o->name, text);
    *(uint64_t *)at = v;
    return 0;
}

static int set_size(void *at, const Option *o, const char *text, Error *err)
{
    uint64_t v;
    if (!parse_u64(text, &v) || (double)v < o->low || (double)v > o->high)
        return fail(err, "%s wants a whole number from %.0f to %.0f, not "
                    "'%s'", o->name, o->low, o->high, text);
    *(size_t *)at = (size_t)v;
    return 0;
}

static int set_number(void *at, const Option *o, const char *text, Error *err)
{
    char *end;
    double v = strtod(text, &end);
    bool whole = end != text && *end == '\0' &&
                 !isspace((unsigned char)text[0]);
    if (!whole || !(v >= o->low && v <= o->high))
        return fail(err, "%s wants a number from %g to %g, not '%s'", o->name,
                    o->low, o->high, text);
    *(double *)at = v;
    return 0;
}

/* The index of text among "a|b|c", or -1. */
static int find_word(const char *words, const char *text)
{
    size_t n = strlen(text);
    for (int i = 0; *words != '\0'; i++) {
        size_t length = strcspn(words, "|");
        if (length == n && memcmp(words, text, n) == 0)
            return i;
        words += length + (words[length] == '|');
    }
    return -1;
}

static int set_choice(void *at, const Option *o, const char *text, Error *err)
{
    int i = find_word(o->argument, text);
    if (i < 0)
        return fail(err, "%s wants one of %s, not '%s'", o->name, o->argument,
                    text);
    *(int *)at = i;
    return 0;
}

static int set_ints(void *at, const Option *o, const char *text, Error *err)
{
    const char *s = text;
    while (isdigit((unsigned char)*s)) {
        s += strspn(s, "0123456789");
        if ((*s == ',' || *s == ' ') && isdigit((unsigned char)s[1]))
            s++;
    }
    if (*text == '\0' || *s != '\0')
        return fail(err, "%s wants whole numbers as in 1,2,3, not '%s'",
                    o->name, text);
    *(const char **)at = text;
    return 0;
}

static int add_text(OptionList *list, const Option *o, const char *text,
                    Error *err)
{
    if (list->n == OPTION_LIST_MAX)
        return fail(err, "%s is given more than %d times", o->name,
                    OPTION_LIST_MAX);
    list->text[list->n++] = text;
    return 0;
}

static int set_value(Arguments *values, const Option *o, const char *text,
                     Error *err)
{
    void *at = (char *)values + o->offset;
    switch (o->kind) {
    case OPTION_FLAG: *(bool *)at = true; return 0;
    case OPTION_TEXT: *(const char **)at = text; return 0;
    case OPTION_SIZE: return set_size(at, o, text, err);
    case OPTION_U64: return set_u64(at, o, text, err);
    case OPTION_NUMBER: return set_number(at, o, text, err);
    case OPTION_CHOICE: return set_choice(at, o, text, err);
    case OPTION_INTS: return set_ints(at, o, text, err);
    case OPTION_LIST: return add_text(at, o, text, err);
    }
    return 0;
}

/* One option at argv[*i]; moves *i over a value that stands apart. */
static int parse_option(CommandLine *line, Arguments *values, const Program *p,
                        char **argv, int argc, int *i, Error *err)
{
    const char *text = argv[*i];
    size_t n = strcspn(text, "=");
    size_t option = find_option(p, text, n);
    if (option == p->n_options || !takes(line->command, option))
        return fail(err, "%s has no option '%.*s' (%s %s --help lists its "
                    "options)", line->command->name, (int)n, text, p->name,
                    line->command->name);
    const Option *o = &p->options[option];
    uint64_t bit = (uint64_t)1 << option;
    if ((line->given & bit) != 0 && o->kind != OPTION_LIST)
        return fail(err, "%s is given twice", o->name);
    line->given |= bit;
    const char *value = text[n] == '=' ? text + n + 1 : NULL;
    if (o->kind == OPTION_FLAG && value != NULL)
        return fail(err, "%s takes no value, but is given '%s'", o->name,
                    value);
    if (o->kind != OPTION_FLAG && value == NULL) {
        if (*i + 1 == argc)
            return fail(err, "%s wants a value: %s", o->name, o->argument);
        value = argv[++*i];
    }
    return set_value(values, o, value, err);
}

static bool is_option(const char *text)
{
    return text[0] == '-' && text[1] != '\0';
}

static bool is_help(const char *text)
{
    return strcmp(text, "--help") == 0 || strcmp(text, "-h") == 0;
}

static int check_operands(const CommandLine *line, const Program *p,
                          Error *err)
{
    const Command *c = line->command;
    if (line->n_operands < c->least)
        return fail(err, "%s wants %s (%s %s --help says more)", c->name,
                    c->operands, p->name, c->name);
    if (line->n_operands > c->most)
        return fail(err, "%s takes %s, and '%s' is one too many", c->name,
                    c->operands, line->operands[c->most]);
    return 0;
}

/* "-p or --ids": the names of a set, in `out`. */
static void name_set(char *out, size_t size, const Program *p, uint64_t set,
                     const char *between)
{
    size_t n = 0;
    out[0] = '\0';
    for (size_t i = 0; i < p->n_options && n < size; i++)
        if (in_set(set, i))
            n += (size_t)snprintf(out + n, size - n, "%s%s", n ? between : "",
                                  p->options[i].name);
}

static int check_wanted(const CommandLine *line, const Program *p, Error *err)
{
    const Command *c = line->command;
    uint64_t one = line->given & c->wanted, missing = c->also & ~line->given;
    char names[256];
    name_set(names, sizeof names, p, missing, " and ");
    if (missing != 0)
        return fail(err, "%s wants %s (%s %s --help says more)", c->name,
                    names, p->name, c->name);
    name_set(names, sizeof names, p, c->wanted, " or ");
    if (c->wanted != 0 && one == 0)
        return fail(err, "%s wants %s (%s %s --help says more)", c->name,
                    names, p->name, c->name);
    if ((one & (one - 1)) != 0)
        return fail(err, "%s wants only one of %s", c->name, names);
    return 0;
}

static int parse_words(CommandLine *line, Arguments *values, const Program *p,
                       int argc, char **argv, Error *err)
{
    bool options = true;
    line->operands = argv;
    for (int i = 0; i < argc; i++) {
        if (options && strcmp(argv[i], "--") == 0) {
            options = false;
        } else if (options && is_help(argv[i])) {
            line->action = LINE_HELP;
        } else if (options && is_option(argv[i])) {
            if (parse_option(line, values, p, argv, argc, &i, err) != 0)
                return -1;
        } else {
            line->operands[line->n_operands++] = argv[i];
        }
    }
    if (line->action == LINE_HELP)
        return 0;
    return check_operands(line, p, err) != 0 ? -1 : check_wanted(line, p, err);
}

static int parse_program(CommandLine *line, const Program *p, int argc,
                         char **argv, Error *err)
{
    bool completion = strcmp(argv[1], "--completion") == 0;
    if (is_help(argv[1]))
        line->action = LINE_HELP;
    else if (strcmp(argv[1], "--man") == 0)
        line->action = LINE_MAN;
    else if (completion && argc > 2 && strcmp(argv[2], "bash") == 0)
        line->action = LINE_BASH;
    else if (completion)
        return fail(err, "--completion wants one of bash");
    else
        return fail(err, "unknown option '%s' (%s --help lists what there "
                    "is)", argv[1], p->name);
    if (argc > 2 + completion)
        return fail(err, "'%s' is one too many", argv[2 + completion]);
    return 0;
}

int options_parse(CommandLine *line, Arguments *values, const Program *program,
                  int argc, char **argv, Error *err)
{
    *line = (CommandLine){.program = argv[0], .operands = argv};
    if (argc < 2)
        return fail(err, "a command is wanted (%s --help lists them)",
                    program->name);
    if (is_option(argv[1]))
        return parse_program(line, program, argc, argv, err);
    line->command = find_command(program, argv[1]);
    if (line->command == NULL)
        return fail(err, "unknown command '%s' (%s --help lists them)",
                    argv[1], program->name);
    return parse_words(line, values, program, argc - 2, argv + 2, err);
}

/* Help ------------------------------------------------------------------- */

/* The number of bytes of the longest run of words that fits `width`. */
static size_t fitting(const char *text, size_t width)
{
    size_t n = strcspn(text, "\n");
    if (n <= width)
        return n;
    n = width;
    while (n > 0 && text[n] != ' ')
        n--;
    return n > 0 ? n : strcspn(text, " \n");
}

/* Paragraphs folded at HELP_WIDTH; `column` is where the cursor stands. */
static void fold(FILE *out, const char *text, int indent, int column)
{
    while (*text != '\0') {
        size_t n = fitting(text, (size_t)(HELP_WIDTH - indent));
        fprintf(out, "%*s%.*s\n", indent - column, "", (int)n, text);
        text += n;
        text += *text == ' ' || *text == '\n';
        column = 0;
    }
}

static void help_pair(FILE *out, const char *left, const char *argument,
                      const char *right)
{
    int n = fprintf(out, "  %s%s%s", left, argument != NULL ? " " : "",
                    argument != NULL ? argument : "");
    if (n >= HELP_COLUMN) {
        putc('\n', out);
        n = 0;
    }
    fold(out, right, HELP_COLUMN, n);
}

static void help_command(const Program *p, const Command *c, FILE *out)
{
    fprintf(out, "usage: %s %s%s%s%s\n\n", p->name, c->name,
            c->operands[0] != '\0' ? " " : "", c->operands,
            c->options != 0 ? " [options]" : "");
    fold(out, c->text, 0, 0);
    if (c->options != 0)
        fprintf(out, "\noptions:\n");
    for (size_t i = 0; i < p->n_options; i++)
        if (takes(c, i))
            help_pair(out, p->options[i].name, p->options[i].argument,
                      p->options[i].help);
}

static void help_program(const Program *p, FILE *out)
{
    fprintf(out, "usage: %s COMMAND ...\n\n", p->name);
    fold(out, p->summary, 0, 0);
    fprintf(out, "\ncommands:\n");
    for (size_t i = 0; i < p->n_commands; i++)
        help_pair(out, p->commands[i].name, NULL, p->commands[i].summary);
    fprintf(out, "\n%s COMMAND --help tells about one of them.\n"
            "%s --man prints the manual page, %s --completion bash a script\n"
            "for the shell to source.\n", p->name, p->name, p->name);
}

/* Manual page ------------------------------------------------------------ */

static void roff_text(FILE *out, const char *text)
{
    bool start = true;
    for (; *text != '\0'; text++) {
        if (start && (*text == '.' || *text == '\''))
            fputs("\\&", out);
        start = *text == '\n';
        if (*text == '\\')
            fputs("\\e", out);
        else if (*text == '-')
            fputs("\\-", out);
        else if (*text == '\n')
            fputs("\n.PP\n", out);
        else
            putc(*text, out);
    }
    putc('\n', out);
}

static void man_option(const Option *o, FILE *out)
{
    fprintf(out, ".TP\n.B ");
    roff_text(out, o->name);
    if (o->argument != NULL)
        fprintf(out, ".I %s\n", o->argument);
    fputs(".br\n", out);
    roff_text(out, o->help);
}

static void man_command(const Program *p, const Command *c, FILE *out)
{
    fprintf(out, ".SS %s %s\n", c->name, c->operands);
    roff_text(out, c->text);
    if (c->options != 0)
        fputs(".PP\nOptions:\n", out);
    for (size_t i = 0; i < p->n_options; i++)
        if (takes(c, i))
            roff_text(out, p->options[i].name);
}

static void print_man(const Program *program, FILE *out)
{
    fprintf(out, ".TH %s 1\n.SH NAME\n%s \\- ", program->name, program->name);
    roff_text(out, program->summary);
    fprintf(out, ".SH SYNOPSIS\n.B %s\n.I COMMAND\n[operands] [options]\n"
            ".SH COMMANDS\n", program->name);
    for (size_t i = 0; i < program->n_commands; i++)
        man_command(program, &program->commands[i], out);
    fprintf(out, ".SH OPTIONS\n");
    for (size_t i = 0; i < program->n_options; i++)
        man_option(&program->options[i], out);
    fprintf(out, ".SH EXIT STATUS\n0: done. 1: an error, one line on standard "
            "error says which. 2: the command line is wrong.\n");
}

/* Completion ------------------------------------------------------------- */

static void bash_words(const char *words, FILE *out)
{
    for (; *words != '\0'; words++)
        putc(*words == '|' ? ' ' : *words, out);
}

static void bash_options(const Program *p, const Command *c, FILE *out)
{
    fprintf(out, "    %s) words='", c->name);
    for (size_t i = 0; i < p->n_options; i++)
        if (takes(c, i))
            fprintf(out, "%s ", p->options[i].name);
    fprintf(out, "--help' ;;\n");
}

static void bash_choices(const Program *p, FILE *out)
{
    for (size_t i = 0; i < p->n_options; i++) {
        const Option *o = &p->options[i];
        if (o->kind == OPTION_CHOICE) {
            fprintf(out, "    %s) words='", o->name);
            bash_words(o->argument, out);
            fprintf(out, "' ;;\n");
        }
    }
}

static void print_bash(const Program *program, FILE *out)
{
    const char *name = program->name;
    fprintf(out, "_%s()\n{\n    local words=''\n"
            "    case ${COMP_WORDS[1]} in\n", name);
    for (size_t i = 0; i < program->n_commands; i++)
        bash_options(program, &program->commands[i], out);
    fprintf(out, "    esac\n    case ${COMP_WORDS[COMP_CWORD-1]} in\n");
    bash_choices(program, out);
    fprintf(out, "    esac\n    [ \"$COMP_CWORD\" != 1 ] || words='");
    for (size_t i = 0; i < program->n_commands; i++)
        fprintf(out, "%s ", program->commands[i].name);
    fprintf(out, "--help'\n    COMPREPLY=($(compgen -W \"$words\" -- "
            "\"${COMP_WORDS[COMP_CWORD]}\"))\n}\n"
            "complete -o default -F _%s %s\n", name, name);
}

void options_print(const Program *program, const CommandLine *line, FILE *out)
{
    if (line->action == LINE_MAN)
        print_man(program, out);
    else if (line->action == LINE_BASH)
        print_bash(program, out);
    else if (line->command != NULL)
        help_command(program, line->command, out);
    else
        help_program(program, out);
}
