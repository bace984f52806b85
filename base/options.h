/* options.h: a command line, described once.
 *
 * A table of commands and one of options drive parsing, --help, the manual
 * page and shell completion, so that none of them can say what another does
 * not. An option means the same in every command that takes it. Knows nothing
 * of what the commands do. */
#ifndef BASE_OPTIONS_H
#define BASE_OPTIONS_H

#include "error.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef enum {
    OPTION_FLAG,    /* bool */
    OPTION_TEXT,    /* const char * */
    OPTION_SIZE,    /* size_t from low to high */
    OPTION_U64,     /* uint64_t */
    OPTION_NUMBER,  /* double from low to high */
    OPTION_CHOICE,  /* int: which of the words of `argument`, from 0 */
    OPTION_INTS,    /* const char *: whole numbers, ',' or ' ' between */
    OPTION_LIST     /* OptionList: may be given again */
} OptionKind;

enum { OPTION_LIST_MAX = 32 };

typedef struct {
    const char *text[OPTION_LIST_MAX];
    size_t n;
} OptionList;

/* The program's own struct: the values of its options at their offsets, set
 * to the defaults before parsing. */
typedef struct Arguments Arguments;

typedef struct {
    const char *name;      /* "--seed" or "-n" */
    OptionKind kind;
    size_t offset;         /* of the value in Arguments */
    const char *argument;  /* "N"; a choice: "naive|absorbed"; a flag: NULL */
    double low, high;      /* of a size or a number */
    const char *help;      /* one sentence without its full stop */
} Option;

typedef struct {
    const char *name;
    const char *operands;  /* "DIR [FILE]" for the help */
    size_t least, most;    /* how many of them */
    uint64_t options;      /* bit i: takes options[i] of the program */
    uint64_t wanted;       /* exactly one of these has to be there */
    uint64_t also;         /* and all of these */
    const char *summary;   /* one line */
    const char *text;      /* paragraphs, with '\n' between */
    /* 0; -1: an error; else an exit status whose reason has been told. */
    int (*run)(const Arguments *a, Error *err);
} Command;

typedef struct {
    const char *name, *summary;
    const Command *commands;
    size_t n_commands;
    const Option *options; /* at most 64 */
    size_t n_options;
} Program;

typedef enum { LINE_RUN, LINE_HELP, LINE_MAN, LINE_BASH } LineAction;

typedef struct {
    LineAction action;
    const char *program;    /* argv[0] */
    const Command *command; /* NULL: none; of LINE_HELP: the program's */
    char **operands;
    size_t n_operands;
    uint64_t given;         /* bit i: options[i] was there */
} CommandLine;

/* Parses COMMAND and, in any order, operands and options ("--name value",
 * "--name=value"; "--" ends the options; "-" alone is an operand), or one of
 * --help, --man, --completion bash. Reorders argv. -1 with a message that
 * names what is wrong. */
int options_parse(CommandLine *line, Arguments *values, const Program *program,
                  int argc, char **argv, Error *err);
/* True if option i was there. */
bool option_given(const CommandLine *line, size_t i);
/* What LINE_HELP, LINE_MAN and LINE_BASH ask for; man is roff, man(7). */
void options_print(const Program *program, const CommandLine *line, FILE *out);

#endif
