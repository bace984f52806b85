#!/bin/sh
# The tests are written with cmocka (cmocka.org). Where the compiler does not
# find it, it is installed with the system's package manager.
found()
{
    printf '%s\n' '#include <stdarg.h>' '#include <stddef.h>' \
        '#include <setjmp.h>' '#include <stdint.h>' '#include <cmocka.h>' |
        ${CC:-cc} $(pkg-config --cflags cmocka 2>/dev/null) -E - \
            >/dev/null 2>&1
}

install_with()
{
    manager=$1
    shift
    command -v "$manager" >/dev/null 2>&1 || return 1
    [ "$manager" = brew ] || [ "$(id -u)" = 0 ] || set -- sudo "$@"
    echo "cmocka, which the tests need, is absent; fetching it: $*"
    "$@"
}

found && exit 0
install_with apt-get apt-get install -y libcmocka-dev ||
    install_with dnf dnf install -y libcmocka-devel ||
    install_with pacman pacman -S --noconfirm cmocka ||
    install_with apk apk add cmocka-dev ||
    install_with zypper zypper install -y libcmocka-devel ||
    install_with brew brew install cmocka
found && exit 0
echo "make test needs cmocka (the header cmocka.h and -lcmocka), and it could" \
    "not be installed: please install it and run make test again" >&2
exit 1
