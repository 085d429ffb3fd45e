/* SPDX-License-Identifier: MIT
 * What the compiler expects from a run-time library and -nostdlib leaves out.
 *
 * memcpy, memmove, memset and their __aeabi_ twins (byte counts, any alignment); 32-bit division for
 * cores without a divide instruction (Armv6-M); 64-bit multiply, shift and divide, count of leading
 * zeros.  Names, arguments and result registers: Arm IHI 0043, "Run-time ABI for the Arm Architecture",
 * section 5.  The linker drops what a program does not use.
 */
#include <stddef.h>
#include <stdint.h>

/* A compiler that knows memset turns a filling loop into a call to memset, and a call to memset into one to
 * __aeabi_memset: here, both would be endless recursion.  Inlined, a loop would lose the attribute. */
#if defined(__clang__)
#define TE_LOOP __attribute__((no_builtin, noinline))
#else
#define TE_LOOP __attribute__((optimize("no-tree-loop-distribute-patterns"), noinline))
#endif

TE_LOOP void *memcpy(void *restrict to, const void *restrict from, size_t bytes) {
    uint8_t *d = to;
    const uint8_t *s = from;
    if ((((uintptr_t)d | (uintptr_t)s) & 3u) == 0) {
        for (; bytes >= 4; bytes -= 4, d += 4, s += 4) *(uint32_t *)d = *(const uint32_t *)s;
    }
    while (bytes-- > 0) *d++ = *s++;
    return to;
}

TE_LOOP void *memmove(void *to, const void *from, size_t bytes) {
    uint8_t *d = to;
    const uint8_t *s = from;
    if (d <= s || d >= s + bytes) {
        while (bytes-- > 0) *d++ = *s++;
    } else {
        while (bytes-- > 0) d[bytes] = s[bytes];
    }
    return to;
}

TE_LOOP static void te_fill(void *to, int value, size_t bytes) {
    uint8_t *d = to;
    const uint32_t word = (uint32_t)(uint8_t)value * 0x01010101u;
    for (; bytes > 0 && ((uintptr_t)d & 3u) != 0; --bytes) *d++ = (uint8_t)value;
    for (; bytes >= 4; bytes -= 4, d += 4) *(uint32_t *)d = word;
    while (bytes-- > 0) *d++ = (uint8_t)value;
}

TE_LOOP void *memset(void *to, int value, size_t bytes) {
    te_fill(to, value, bytes);
    return to;
}

/* Another name of a function.  GCC wants the attributes of the first name repeated; clang has no word for it. */
#if defined(__clang__)
#define TE_ALIAS(name) __attribute__((alias(#name)))
#else
#define TE_ALIAS(name) __attribute__((alias(#name), copy(name)))
#endif

/* Their callers expect no result; that they return one like the first name changes nothing. */
void *__aeabi_memcpy(void *to, const void *from, size_t bytes) TE_ALIAS(memcpy);
void *__aeabi_memcpy4(void *to, const void *from, size_t bytes) TE_ALIAS(memcpy);
void *__aeabi_memcpy8(void *to, const void *from, size_t bytes) TE_ALIAS(memcpy);
void *__aeabi_memmove(void *to, const void *from, size_t bytes) TE_ALIAS(memmove);
void *__aeabi_memmove4(void *to, const void *from, size_t bytes) TE_ALIAS(memmove);
void *__aeabi_memmove8(void *to, const void *from, size_t bytes) TE_ALIAS(memmove);

/* The Arm names take the byte count before the value. */
TE_LOOP void __aeabi_memset(void *to, size_t bytes, int value) { te_fill(to, value, bytes); }
void __aeabi_memset4(void *to, size_t bytes, int value) TE_ALIAS(__aeabi_memset);
void __aeabi_memset8(void *to, size_t bytes, int value) TE_ALIAS(__aeabi_memset);
TE_LOOP void __aeabi_memclr(void *to, size_t bytes) { te_fill(to, 0, bytes); }
void __aeabi_memclr4(void *to, size_t bytes) TE_ALIAS(__aeabi_memclr);
void __aeabi_memclr8(void *to, size_t bytes) TE_ALIAS(__aeabi_memclr);

/* Leading zeros of a word; 32 for 0.  Binary search: no table, no loop. */
int __clzsi2(uint32_t value) {
    int zeros = 0;
    if (value == 0) return 32;
    if ((value >> 16) == 0) zeros += 16, value <<= 16;
    if ((value >> 24) == 0) zeros += 8, value <<= 8;
    if ((value >> 28) == 0) zeros += 4, value <<= 4;
    if ((value >> 30) == 0) zeros += 2, value <<= 2;
    return zeros + (int)((value >> 31) ^ 1u);
}

int __clzdi2(uint64_t value) {
    const uint32_t high = (uint32_t)(value >> 32);
    return high != 0 ? __clzsi2(high) : 32 + __clzsi2((uint32_t)value);
}

/* Two words seen as one 64-bit value; every core here is little-endian. */
typedef union {
    uint64_t all;
    struct {
        uint32_t low, high;
    } half;
} te_pair;

uint64_t __aeabi_llsl(uint64_t value, int shift) {
    te_pair in = {.all = value}, out;
    if (shift >= 32) {
        out.half.low = 0, out.half.high = in.half.low << (shift - 32);
    } else if (shift > 0) {
        out.half.low = in.half.low << shift;
        out.half.high = (in.half.high << shift) | (in.half.low >> (32 - shift));
    } else {
        out = in;
    }
    return out.all;
}

uint64_t __aeabi_llsr(uint64_t value, int shift) {
    te_pair in = {.all = value}, out;
    if (shift >= 32) {
        out.half.low = in.half.high >> (shift - 32), out.half.high = 0;
    } else if (shift > 0) {
        out.half.low = (in.half.low >> shift) | (in.half.high << (32 - shift));
        out.half.high = in.half.high >> shift;
    } else {
        out = in;
    }
    return out.all;
}

int64_t __aeabi_lasr(int64_t value, int shift) {
    te_pair in = {.all = (uint64_t)value}, out;
    const uint32_t sign = (uint32_t)((int32_t)in.half.high >> 31);
    if (shift >= 32) {
        out.half.low = (uint32_t)((int32_t)in.half.high >> (shift - 32)), out.half.high = sign;
    } else if (shift > 0) {
        out.half.low = (in.half.low >> shift) | (in.half.high << (32 - shift));
        out.half.high = (uint32_t)((int32_t)in.half.high >> shift);
    } else {
        out = in;
    }
    return (int64_t)out.all;
}

/* The low 64 bits of a product, from 16-bit halves: Armv6-M has no 32 x 32 -> 64 multiply. */
uint64_t __aeabi_lmul(uint64_t a, uint64_t b) {
    const te_pair x = {.all = a}, y = {.all = b};
    const uint32_t x0 = x.half.low & 0xFFFFu, x1 = x.half.low >> 16;
    const uint32_t y0 = y.half.low & 0xFFFFu, y1 = y.half.low >> 16;
    const uint32_t p00 = x0 * y0, p01 = x0 * y1, p10 = x1 * y0;
    const uint32_t middle = (p00 >> 16) + (p01 & 0xFFFFu) + (p10 & 0xFFFFu); /* < 3 * 2^16 */
    te_pair out;
    out.half.low = (p00 & 0xFFFFu) | (middle << 16);
    out.half.high = x1 * y1 + (p01 >> 16) + (p10 >> 16) + (middle >> 16) + x.half.low * y.half.high +
                    x.half.high * y.half.low;
    return out.all;
}

/* Long division, one quotient bit a step, from the highest bit that can be set. */
static uint32_t divide32(uint32_t n, uint32_t d, uint32_t *rest) {
    uint32_t quotient = 0;
    if (d == 0) {
        *rest = n;
        return 0; /* the Armv7-M divide instructions give 0 too */
    }
    for (int shift = __clzsi2(d) - __clzsi2(n); shift >= 0; --shift) {
        if ((n >> shift) >= d) n -= d << shift, quotient |= 1u << shift;
    }
    *rest = n;
    return quotient;
}

static uint64_t divide64(uint64_t n, uint64_t d, uint64_t *rest) {
    uint64_t quotient = 0;
    if (d == 0) {
        *rest = n;
        return 0;
    }
    for (int shift = __clzdi2(d) - __clzdi2(n); shift >= 0; --shift) {
        const uint64_t step = __aeabi_llsl(d, shift); /* no bit of d is lost: shift <= clz(d) */
        if (n >= step) n -= step, quotient |= __aeabi_llsl(1, shift);
    }
    *rest = n;
    return quotient;
}

uint32_t __aeabi_uidiv(uint32_t n, uint32_t d) {
    uint32_t rest;
    return divide32(n, d, &rest);
}

static uint32_t magnitude32(int32_t value) { return value < 0 ? 0u - (uint32_t)value : (uint32_t)value; }
static uint64_t magnitude64(int64_t value) { return value < 0 ? 0u - (uint64_t)value : (uint64_t)value; }

int32_t __aeabi_idiv(int32_t n, int32_t d) {
    uint32_t rest;
    const uint32_t quotient = divide32(magnitude32(n), magnitude32(d), &rest);
    return (int32_t)((n ^ d) < 0 ? 0u - quotient : quotient);
}

/* {quotient in r0, remainder in r1} is a 64-bit result whose low word is the quotient. */
uint64_t __aeabi_uidivmod(uint32_t n, uint32_t d) {
    te_pair out;
    out.half.low = divide32(n, d, &out.half.high);
    return out.all;
}

uint64_t __aeabi_idivmod(int32_t n, int32_t d) {
    te_pair out;
    uint32_t rest;
    const uint32_t quotient = divide32(magnitude32(n), magnitude32(d), &rest);
    out.half.low = (n ^ d) < 0 ? 0u - quotient : quotient;
    out.half.high = n < 0 ? 0u - rest : rest;
    return out.all;
}

/* {quotient in r0:r1, remainder in r2:r3} is no C return value: the C part works through memory and
 * the entry points load the registers. */
void te_uldivmod(uint64_t n, uint64_t d, uint64_t result[2]) { result[0] = divide64(n, d, &result[1]); }

void te_ldivmod(int64_t n, int64_t d, uint64_t result[2]) {
    uint64_t rest;
    const uint64_t quotient = divide64(magnitude64(n), magnitude64(d), &rest);
    result[0] = (n ^ d) < 0 ? 0u - quotient : quotient;
    result[1] = n < 0 ? 0u - rest : rest;
}

/* Stack while the C part runs: [sp] the pointer (fifth argument word), [sp+8..23] the result. */
#define TE_DIVMOD(name, worker)                                                              \
    __attribute__((naked, used)) void name(void) {                                           \
        __asm volatile("push {r4, lr}\n\tsub sp, #24\n\tadd r4, sp, #8\n\tstr r4, [sp]\n\t"  \
                       "bl " #worker "\n\tldr r0, [sp, #8]\n\tldr r1, [sp, #12]\n\t"         \
                       "ldr r2, [sp, #16]\n\tldr r3, [sp, #20]\n\tadd sp, #24\n\t"           \
                       "pop {r4, pc}\n\t");                                                  \
    }
TE_DIVMOD(__aeabi_uldivmod, te_uldivmod)
TE_DIVMOD(__aeabi_ldivmod, te_ldivmod)
