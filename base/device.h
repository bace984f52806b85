/* device.h: where weights and activations live.
 *
 * The composition (deepseek.c, train.c, main.c) never dereferences a number
 * of the model: it allocates and reads through these functions and hands
 * pointers on. Here they are malloc and memcpy; gpu/device.cu has the same
 * functions for a GPU's memory. */
#ifndef BASE_DEVICE_H
#define BASE_DEVICE_H

#include "error.h"

/* n zeroed elements; NULL with a message that names `what`. */
void *device_alloc(size_t n, size_t size, const char *what, Error *err);
void device_free(void *p);
void device_read(void *to, const void *from, size_t bytes);
/* Mapped weights as kernels see them: on the CPU the bytes where they lie. */
const void *device_weight(const void *mapped, size_t bytes, Error *err);

#endif
