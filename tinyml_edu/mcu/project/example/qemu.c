/* The network on QEMU's Cortex-M4 board (mps2-an386), without a C library: `make qemu`.
 *
 * Reads example/input.bin, writes build/qemu.bin, MODEL_OUTPUT_COUNT bytes for each input, and prints the
 * instructions of each inference.  Files and text go through semihosting (Arm, "Semihosting for AArch32 and
 * AArch64", section 5): `bkpt #0xAB` with the operation in r0 and its arguments behind r1.
 * startup.c calls te_main().
 *
 * SPDX-License-Identifier: MIT
 */
#include "model.h"

#define INPUT "example/input.bin"
#define OUTPUT "build/qemu.bin"

#define OPEN 0x01
#define WRITE_0 0x04
#define WRITE 0x05
#define READ 0x06
#define EXIT 0x20
#define EXIT_REASON 0x20026 /* the application ended */
#define MODE_READ 1
#define MODE_WRITE 5

/* The board's timer counts down at 25 MHz; with -icount shift=6 an instruction takes 64 ns, 8/5 of a tick. */
#define TIMER ((volatile uint32_t *)0x40000000)
#define TIMER_CONTROL 0
#define TIMER_VALUE 1
#define TIMER_RELOAD 2

void te_main(void);

static int32_t semihost(int32_t operation, const void *arguments) {
    register int32_t r0 __asm("r0") = operation;
    register const void *r1 __asm("r1") = arguments;
    __asm volatile("bkpt #0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void stop(const char *message, uint32_t code) {
    const uint32_t arguments[2] = {EXIT_REASON, code};
    semihost(WRITE_0, message);
    semihost(EXIT, arguments);
    for (;;) {
    }
}

static int32_t open_file(const char *name, uint32_t length, uint32_t mode) {
    const uint32_t arguments[3] = {(uint32_t)name, mode, length};
    const int32_t handle = semihost(OPEN, arguments);
    if (handle < 0) {
        stop("a file does not open; start QEMU in the project's folder\n", 1);
    }
    return handle;
}

/* Returns the bytes that were not transferred. */
static int32_t transfer(int32_t operation, int32_t handle, const int8_t *memory, uint32_t bytes) {
    const uint32_t arguments[3] = {(uint32_t)handle, (uint32_t)memory, bytes};
    return semihost(operation, arguments);
}

static void print(uint32_t number, const char *text) {
    char digits[11];
    char *first = digits + 10;
    *first = 0;
    do {
        *--first = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    semihost(WRITE_0, first);
    semihost(WRITE_0, text);
}

static uint32_t ticks_of_inference(te_status *status) {
    const uint32_t before = TIMER[TIMER_VALUE];
    *status = model_invoke();
    return before - TIMER[TIMER_VALUE];
}

void te_main(void) {
    const int32_t input = open_file(INPUT, sizeof INPUT - 1, MODE_READ);
    const int32_t output = open_file(OUTPUT, sizeof OUTPUT - 1, MODE_WRITE);
    if (model_init() != TE_OK) {
        stop("the arena cannot be written; see example/qemu.ld\n", 1);
    }
    TIMER[TIMER_RELOAD] = 0xFFFFFFFF;
    TIMER[TIMER_VALUE] = 0xFFFFFFFF;
    TIMER[TIMER_CONTROL] = 1;
    while (transfer(READ, input, model_input(), MODEL_INPUT_COUNT) == 0) {
        te_status status;
        const uint32_t ticks = ticks_of_inference(&status);
        if (status != TE_OK) {
            stop("model_invoke returned an error\n", 1);
        }
        if (transfer(WRITE, output, model_output(), MODEL_OUTPUT_COUNT) != 0) {
            stop("the output could not be written\n", 1);
        }
        print(ticks / 8 * 5 + ticks % 8 * 5 / 8, " instructions\n");
    }
    stop("", 0);
}
