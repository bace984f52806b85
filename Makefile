# Makefile: the whole interface to building; GNU make. `make help` lists it.
#
#   make                          ./deepseek, for this machine
#   make CC=clang OPT='-O1 -g'    another compiler, other optimisation flags
#   make portable                 for every machine of this architecture
#   make test                     all tests; one alone: make build/tests/test_X
#                                 and run it from here
#
# CC     the compiler: any C99 one
# OPT    optimisation flags alone; default -O3 -march=native where CC knows it
# WERROR 1: a warning is an error
# BUILD  where objects go, PROGRAM what is linked: for builds side by side
# PREFIX, DESTDIR: where `make install` puts things
# PYTHON for `make engines`: has numpy and safetensors, and engines that are not
#        in build/engines (sh tests/engines/install.sh build/engines)
# ENGINES, PACKS, OPTIONS: some of them; what engines.py takes besides
# TEXTS  what `make tiny` and `make balance` learn from
# TINY   where the first puts tokenizer, data, runs
# LIKE   the model that it makes one like

BUILD   = build
PROGRAM = deepseek
PREFIX  = /usr/local
MODEL   = models/stories
FUZZ    = 20
PYTHON ?= python3
TINY    = $(BUILD)/tiny
TEXTS   =
LIKE    = models/stories-v3

# The flags of its argument, if the compiler takes them without a word.
accepts = $(shell mkdir -p $(BUILD) && echo 'int probe;' >$(BUILD)/probe.c && \
    $(CC) -Werror $(1) -c -o $(BUILD)/probe.o $(BUILD)/probe.c 2>&1 | \
    grep -q . || echo '$(1)')

OPT      := -O3 $(call accepts,-march=native)
# Contraction to fma is the source's to decide, never the compiler's: the same
# bits everywhere depend on it (docs/numerics.md). On s390x standard C would
# widen float to double: the second flag says not to.
FLAGS    := -std=c99 $(call accepts,-ffp-contract=off) \
            $(call accepts,-fexcess-precision=fast)
WARNINGS := $(call accepts,-pedantic) $(call accepts,-Wall) \
            $(call accepts,-Wextra) $(call accepts,-Wconversion) \
            $(call accepts,-Wshadow) $(if $(WERROR),-Werror)
# Header dependencies, written beside each object while it is compiled.
DEPS     := $(or $(call accepts,-MMD -MP),$(call accepts,-MMD),-MD)
CFLAGS   = $(FLAGS) $(WARNINGS) $(OPT)
LDLIBS   = -lm

LIBRARY = $(filter-out main.c,$(wildcard *.c)) $(wildcard base/*.c)
COMMANDS = main.c $(wildcard commands/*.c)
OBJECTS = $(LIBRARY:%.c=$(BUILD)/%.o)
TESTS   = $(patsubst %.c,$(BUILD)/%,$(wildcard tests/test_*.c))
BENCHES = $(patsubst %,$(BUILD)/bench/%,kernels model tokenizer train)
CHECKS  = $(wildcard tests/check_*.sh)
# Whatever a file holds, every line that reads it has been tried.
LOADERS = base/file.c base/json.c base/safetensors.c base/npy.c \
          base/document.c base/bpe.c config.c model.c tokenizer.c
CMOCKA  = $(or $(shell pkg-config --cflags --libs cmocka 2>/dev/null),-lcmocka)

.PHONY: all portable run test check golden mutants engines identical \
        exhaustive fuzz coverage eva bench balance tiny install clean help \
        FORCE $(CHECKS)
MAKEFLAGS += --no-builtin-rules
.SECONDARY:
.DELETE_ON_ERROR:

all: $(PROGRAM) ## build ./deepseek

portable: ## build it for every machine of this architecture (OPT=-O2)
	$(MAKE) OPT=-O2

run: $(PROGRAM) ## tell a story from the model in models/
	./$(PROGRAM) generate $(MODEL) -p "Once upon a time" -n 250 \
	    --temp 0.7 --seed 20

test: $(PROGRAM) $(TESTS) ## build and run all tests (fetches cmocka)
	@DEEPSEEK=$(abspath $(PROGRAM)) sh tests/run.sh $(TESTS)

check: test $(CHECKS) ## the tests, and every tests/check_*.sh: sanitizers, faults, …

$(CHECKS): test
	@DEEPSEEK=$(abspath $(PROGRAM)) sh $@

golden: $(PROGRAM) ## make the golden packs, compare with golden/
	DEEPSEEK=$(abspath $(PROGRAM)) sh tests/golden.sh $(BUILD)/golden

mutants: ## make each known mistake; which golden packs show it? 10 minutes
	nice -n 10 sh tests/mutants.sh $(BUILD)/mutants

engines: $(PROGRAM) ## run other engines on the packs, those that PYTHON has
	DEEPSEEK=$(abspath $(PROGRAM)) $(PYTHON) tests/engines/engines.py \
	    $(BUILD)/engines $(if $(ENGINES),--engines $(ENGINES)) \
	    $(if $(PACKS),--packs $(PACKS)) $(OPTIONS)

identical: ## compare the bits of every build that this machine can make
	sh tests/identical.sh

exhaustive: $(BUILD)/tests/exhaustive $(BUILD)/tests/test_mtp ## try every F32 in every format, drafts of 60,000 models: minutes
	$(abspath $<)
	ROUNDS=40 $(abspath $(BUILD)/tests/test_mtp)

fuzz: ## search for inputs that break a reader, FUZZ seconds each
	sh tests/fuzz.sh $(FUZZ)

coverage: ## print which lines the tests and failing calls ran (gcc)
	sh tests/coverage.sh $(LOADERS)

eva: ## prove the absence of run-time errors, as far as it goes (frama-c)
	sh tests/eva.sh

bench: $(PROGRAM) $(BENCHES) ## measure; beside peers, if PYTHON has them
	@DEEPSEEK=$(abspath $(PROGRAM)) sh bench/table.sh $(BUILD)/bench

balance: $(PROGRAM) ## compare ways of balancing experts on TEXTS=a.txt
	DEEPSEEK=$(abspath $(PROGRAM)) WORK=$(BUILD)/balance \
	    sh bench/balance.sh $(TEXTS)

tiny: $(PROGRAM) ## train a model like the shipped one on TEXTS="a.txt b.txt"
	DEEPSEEK=$(abspath $(PROGRAM)) sh models/train.sh $(LIKE) $(TINY) $(TEXTS)

install: $(PROGRAM) ## all that is of use without the sources under PREFIX
	mkdir -p $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 \
	    $(DESTDIR)$(PREFIX)/share/bash-completion/completions \
	    $(DESTDIR)$(PREFIX)/share/deepseek
	cp $(PROGRAM) $(DESTDIR)$(PREFIX)/bin/deepseek
	cp golden/bugs.txt $(DESTDIR)$(PREFIX)/share/deepseek/bugs.txt
	$(abspath $(PROGRAM)) --man \
	    >$(DESTDIR)$(PREFIX)/share/man/man1/deepseek.1
	$(abspath $(PROGRAM)) --completion bash \
	    >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/deepseek

clean: ## remove what was built
	rm -rf $(BUILD) $(PROGRAM)

help: ## this list
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile; echo
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile | expand -t 12

$(PROGRAM): $(COMMANDS:%.c=$(BUILD)/%.o) $(OBJECTS)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(OBJECTS)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(CMOCKA) $(LDLIBS)

$(BUILD)/library.a: $(OBJECTS)
	rm -f $@ && $(AR) rc $@ $^

$(BUILD)/bench/%: $(BUILD)/bench/%.o $(BUILD)/bench/limits.o $(OBJECTS)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(BUILD)/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(DEPS) -I. -c -o $@ $<

$(TESTS:%=%.o) $(BUILD)/tests/exhaustive.o: | $(BUILD)/cmocka

$(BUILD)/cmocka:
	@CC='$(CC)' sh tests/cmocka.sh && touch $@

# Other flags rebuild: this file changes when they do.
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(CC) $(CPPFLAGS) $(CFLAGS)' | cmp -s - $@ || \
	    echo '$(CC) $(CPPFLAGS) $(CFLAGS)' >$@

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
