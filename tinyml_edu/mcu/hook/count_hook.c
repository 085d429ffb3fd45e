/* SPDX-License-Identifier: MIT
 * The emulator's counter: called before every instruction that the emulated core executes.
 *
 * One record per halfword of code holds what cycles.py knows about the instruction there; the hook adds
 * up instructions, cycles, taken branches and executions per address, and keeps a stack of the watched
 * functions that are running, so that each gets its inclusive cost, callees too.  A function ends where its
 * link register pointed at entry, with the stack pointer of entry: tail calls and recursion come out right.
 *
 * struct te_counter is mirrored by _Counter in emulator.py, which checks te_counter_bytes() against its own.
 */
#include <stdint.h>

#define TE_CYCLES(slot) ((slot) & 0xFFu)             /* cycles of the instruction itself */
#define TE_ARRIVAL(slot) (((slot) >> 8) & 0xFFu)     /* more, if it was reached by a branch */
#define TE_REFILL(slot) (((slot) >> 16) & 0xFFu)     /* more, if the next one does not follow it */
#define TE_WATCH 0x01000000u                         /* a watched function starts here */
#define TE_RETURN 0x02000000u                        /* a watched function returned here at least once */
#define TE_MOVES_SP 0x04000000u                      /* may lower the stack pointer */
#define TE_EVENT 0x07000000u
#define TE_DEPTH 64

typedef int (*te_reg_read)(void *engine, int id, void *value);
typedef int (*te_stop)(void *engine);

struct te_frame {
    uint64_t instructions, cycles;
    uint32_t back, sp, function, unused;
};

struct te_counter {
    uint64_t instructions, cycles, taken, limit;
    uint32_t *slots;             /* (slot_count) records, one a halfword from code_base */
    uint64_t *hits;              /* (slot_count) executions */
    uint64_t *totals;            /* (functions, 3) calls, instructions, cycles */
    const uint32_t *watched;     /* (functions) entry addresses, ascending */
    te_reg_read reg_read;
    te_stop stop;
    uint32_t code_base, slot_count, functions, sp_low;
    uint32_t next, last_slot, depth, overflow;
    int32_t sp_register, lr_register;
    struct te_frame frames[TE_DEPTH];
};

/* Accesses per byte of one RAM window; for the heat map of the arena. */
struct te_trace {
    uint32_t *reads, *writes; /* (bytes) each */
    uint64_t base, bytes;
};

uint32_t te_counter_bytes(void) { return sizeof(struct te_counter); }

static uint32_t read_register(const struct te_counter *c, void *engine, int32_t id) {
    uint32_t value = 0;
    c->reg_read(engine, id, &value);
    return value;
}

/* Ends every function that returns to this address with this stack pointer. */
static void leave(struct te_counter *c, uint32_t address, uint32_t sp) {
    while (c->depth > 0) {
        const struct te_frame *top = &c->frames[c->depth - 1];
        if (top->back != address || top->sp != sp) break;
        uint64_t *total = c->totals + 3 * (uint64_t)top->function;
        total[0] += 1;
        total[1] += c->instructions - top->instructions;
        total[2] += c->cycles - top->cycles;
        c->depth -= 1;
    }
}

static void enter(struct te_counter *c, void *engine, uint32_t address, uint32_t sp) {
    if (c->depth == TE_DEPTH) {
        c->overflow = 1;
        c->stop(engine);
        return;
    }
    uint32_t low = 0, high = c->functions;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (c->watched[middle] < address) low = middle + 1;
        else high = middle;
    }
    const uint32_t back = read_register(c, engine, c->lr_register) & ~1u;
    const uint32_t index = (back - c->code_base) >> 1;
    if (index < c->slot_count) c->slots[index] |= TE_RETURN;
    c->frames[c->depth++] = (struct te_frame){c->instructions, c->cycles, back, sp, low, 0};
}

void te_count(void *engine, uint64_t address, uint32_t size, void *user) {
    struct te_counter *c = user;
    const uint32_t here = (uint32_t)address, index = (here - c->code_base) >> 1;
    if (index >= c->slot_count) { /* not a place where code can lie: the fetch itself will fault */
        c->stop(engine);
        return;
    }
    if (here != c->next) {
        c->cycles += TE_REFILL(c->last_slot);
        c->taken += 1;
    }
    if ((c->slots[index] & (TE_WATCH | TE_RETURN)) | (c->last_slot & TE_MOVES_SP)) {
        const uint32_t sp = read_register(c, engine, c->sp_register);
        if (sp < c->sp_low) c->sp_low = sp;
        if (c->slots[index] & TE_RETURN) leave(c, here, sp);
        if (c->slots[index] & TE_WATCH) enter(c, engine, here, sp);
    }
    const uint32_t slot = c->slots[index];
    c->cycles += TE_CYCLES(slot) + (here != c->next ? TE_ARRIVAL(slot) : 0);
    c->hits[index] += 1;
    c->instructions += 1;
    c->last_slot = slot;
    c->next = here + size;
    if (c->instructions >= c->limit) c->stop(engine);
}

/* kind: 16 a read, 17 a write (UC_MEM_READ, UC_MEM_WRITE); the window is checked byte by byte, since an
 * access may straddle its edge. */
void te_trace_access(void *engine, int kind, uint64_t address, int size, int64_t value, void *user) {
    struct te_trace *t = user;
    uint32_t *counts = kind == 17 ? t->writes : t->reads;
    (void)engine;
    (void)value;
    for (int i = 0; i < size; ++i) {
        const uint64_t at = address + (uint64_t)i - t->base;
        if (at < t->bytes) counts[at] += 1;
    }
}
