/* SPDX-License-Identifier: MIT
 * The three functions of <string.h> that the runtime uses; support.c defines them. */
#ifndef TE_STRING_H
#define TE_STRING_H
#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);
#endif
