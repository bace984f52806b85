/* coverage.c: writes down which lines ran when a program ends at once: gcc's
 * counters are lost in _exit() and signals. coverage.sh links it by --wrap. */
#include <signal.h>

void __gcov_dump(void);
void __gcov_reset(void);
void __real__exit(int status);
int __real_raise(int number);
void __wrap__exit(int status);
int __wrap_raise(int number);

void __wrap__exit(int status)
{
    __gcov_dump();
    __real__exit(status);
}

/* Of a bus error alone: an interrupt may come in the midst of malloc, which
 * writing them down calls too. */
int __wrap_raise(int number)
{
    if (number == SIGBUS) {
        __gcov_dump();
        __gcov_reset(); /* else what its handler runs is never written */
    }
    return __real_raise(number);
}
