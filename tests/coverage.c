/* coverage.c: writes down which lines ran when a program ends at once: gcc's
 * counters are lost in _exit() and signals. coverage.sh links it by --wrap. */
void __gcov_dump(void);
void __real__exit(int status);
int __real_raise(int number);
void __wrap__exit(int status);
int __wrap_raise(int number);

void __wrap__exit(int status)
{
    __gcov_dump();
    __real__exit(status);
}

int __wrap_raise(int number)
{
    __gcov_dump();
    return __real_raise(number);
}
