/* SPDX-License-Identifier: MIT
 * Reset: vector table, memory initialisation, floating point unit, then the inference loop.
 *
 * The linker script places te_vectors at the board's vector table address.  A core loads its stack
 * pointer from word 0 and its program counter from word 1 of it; every other exception stops at a
 * breakpoint, since this firmware enables no interrupt.
 *
 * The loop calls model_invoke() and stops at `bkpt #0` with the status in r0.  A debugger, or the
 * emulator, writes an input into the arena, resumes, and reads the output at the next stop.  Another
 * source may define te_main() itself: this one is weak.
 */
#include <stdint.h>

extern uint32_t te_stack_top[], te_data_load[], te_data_start[], te_data_end[], te_bss_start[], te_bss_end[];
void _start(void);
void te_main(void);
void te_fault(void);

__attribute__((section(".vectors"), used)) const void *const te_vectors[16] = {
    te_stack_top, (const void *)_start,
    (const void *)te_fault, (const void *)te_fault, (const void *)te_fault, (const void *)te_fault,
    (const void *)te_fault, (const void *)te_fault, (const void *)te_fault, (const void *)te_fault,
    (const void *)te_fault, (const void *)te_fault, (const void *)te_fault, (const void *)te_fault,
    (const void *)te_fault, (const void *)te_fault,
};

void te_fault(void) {
    for (;;) __asm volatile("bkpt #1");
}

__attribute__((section(".text._start"), noreturn)) void _start(void) {
#if TE_FPU
    /* CPACR: full access to coprocessors 10 and 11 (Armv7-M Architecture Reference Manual, B3.2.20). */
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20;
    __asm volatile("dsb\n\tisb" ::: "memory");
#endif
    /* volatile: these loops run before memcpy and memset may be relied on, so they must stay loops. */
    const volatile uint32_t *from = te_data_load;
    for (volatile uint32_t *to = te_data_start; to < te_data_end; ++to, ++from) *to = *from;
    for (volatile uint32_t *to = te_bss_start; to < te_bss_end; ++to) *to = 0;
    te_main();
    for (;;) te_fault();
}

/* In assembly, so that no prologue, tail call or loop transformation comes between the call and the stop. */
__attribute__((weak, naked, noinline)) void te_main(void) {
    __asm volatile(
        "1:\n\t"
        "bl model_invoke\n\t"
        "bkpt #0\n\t"
        "b 1b\n\t");
}
