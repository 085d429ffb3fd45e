/* SPDX-License-Identifier: MIT
 * The emulator's counters: native callbacks that the emulator calls while it runs a program.
 *
 * te_count_block runs once before each block of straight-line code and reads what the block costs from
 * running sums over the code; te_count_each runs before every instruction and adds up one record at a
 * time: the plain version, several times slower, to which the first is compared.  Both keep a stack of the
 * watched functions that are running, so that each gets its inclusive cost, callees too.  A function ends
 * where its link register pointed at entry, with the stack pointer of entry: tail calls and recursion come
 * out right.
 *
 * Code is indexed by halfword from code_base; cycles.py fills the records.
 * struct te_counter is mirrored by Counter in ../count_hook.py, which checks te_counter_bytes() against its own.
 */
#include <stdint.h>

#define TE_CYCLES(slot) ((slot) & 0xFFu)             /* cycles of the instruction itself */
#define TE_ARRIVAL(slot) ((int8_t)((slot) >> 8))     /* change, if it was reached by a branch */
#define TE_REFILL(slot) (((slot) >> 16) & 0xFFu)     /* more, if the next one does not follow it */
#define TE_WATCH 0x01000000u                         /* a watched function starts here */
#define TE_RETURN 0x02000000u                        /* a watched function returned here at least once */
#define TE_CODE 0x08000000u                          /* an instruction starts here */
#define TE_EPSR_T 0x01000000u                        /* Thumb state, the only one of these cores; no IT block */
#define TE_DEPTH 64

typedef int (*te_reg_read)(void *engine, int id, void *value);
typedef int (*te_reg_write)(void *engine, int id, const void *value);
typedef int (*te_stop)(void *engine);

struct te_frame {
    uint64_t instructions, cycles;
    uint32_t back, sp, function, unused;
};

struct te_counter {
    uint64_t instructions, cycles, taken, limit;
    uint32_t *slots;             /* (slots + 1) records */
    const uint32_t *before;      /* (slots + 1) instructions that start below each halfword */
    const uint32_t *cycles_sum;  /* (slots + 1) their cycles */
    const uint32_t *last;        /* (slots + 1) halfword of the instruction that ends where this one starts */
    int64_t *hits;               /* (functions + 1, slots + 1) executions in each watched function, the last row
                                  * outside of all; as steps: +1 where a run of code starts, -1 at its end */
    uint64_t *totals;            /* (functions, 3) calls, instructions, cycles */
    const uint32_t *watched;     /* (functions) entry addresses, ascending */
    te_reg_read reg_read;
    te_stop stop;
    uint32_t code_base, slot_count, functions;
    uint32_t sp_low, sp_limit, sp_top;
    uint32_t next, refill, depth, problem;
    int32_t sp_register, lr_register;
    struct te_frame frames[TE_DEPTH];
};

enum { TE_TOO_DEEP = 1, TE_NOT_CODE = 2 };

/* Accesses of one RAM window, byte by byte; for the heat map of the arena. */
struct te_trace {
    uint32_t *reads, *writes;           /* (bytes) each */
    uint32_t *cell_reads, *cell_writes; /* (functions + 1, cells) each: the same bytes, by watched function */
    const struct te_counter *counter;
    te_reg_write reg_write;
    uint64_t base, bytes, cells, cell_bytes;
    int32_t epsr_register;
};

uint32_t te_counter_bytes(void) { return sizeof(struct te_counter); }

/* The innermost watched function that is running, or the row behind the last one. */
static uint64_t running(const struct te_counter *c) {
    return c->depth > 0 ? c->frames[c->depth - 1].function : c->functions;
}

/* A run of code from halfword `from` up to `end`, executed once. */
static inline void executed(struct te_counter *c, uint32_t from, uint32_t end) {
    int64_t *hits = c->hits + running(c) * ((uint64_t)c->slot_count + 1);
    hits[from] += 1;
    hits[end] -= 1;
}

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

static void fail(struct te_counter *c, void *engine, uint32_t problem) {
    c->problem = problem;
    c->stop(engine);
}

static void enter(struct te_counter *c, void *engine, uint32_t address, uint32_t sp) {
    uint32_t low = 0, high = c->functions;
    if (c->depth == TE_DEPTH) {
        fail(c, engine, TE_TOO_DEEP);
        return;
    }
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

/* What both counters do when control reaches an address: close the branch that led here, then the
 * functions that returned here, then open the one that starts here. */
static inline void arrive(struct te_counter *c, void *engine, uint32_t here, uint32_t index) {
    if (here != c->next) {
        c->cycles += c->refill;
        c->taken += 1;
    }
    if (c->slots[index] & (TE_WATCH | TE_RETURN)) {
        const uint32_t sp = read_register(c, engine, c->sp_register);
        if (c->slots[index] & TE_RETURN) leave(c, here, sp);
        if (c->slots[index] & TE_WATCH) enter(c, engine, here, sp);
    }
    if (here != c->next) c->cycles += (uint64_t)(int64_t)TE_ARRIVAL(c->slots[index]);
}

void te_count_block(void *engine, uint64_t address, uint32_t size, void *user) {
    struct te_counter *c = user;
    const uint32_t here = (uint32_t)address;
    const uint32_t index = (here - c->code_base) >> 1, end = index + (size >> 1);
    if (index >= c->slot_count || end > c->slot_count || !(c->slots[index] & TE_CODE)) {
        fail(c, engine, TE_NOT_CODE);
        return;
    }
    arrive(c, engine, here, index);
    c->instructions += c->before[end] - c->before[index];
    c->cycles += c->cycles_sum[end] - c->cycles_sum[index];
    executed(c, index, end);
    c->refill = TE_REFILL(c->slots[c->last[end]]);
    c->next = here + size;
    if (c->instructions >= c->limit) c->stop(engine);
}

/* The emulator reports no instruction whose IT condition fails, though the core spends a cycle on it: a gap
 * behind an instruction that cannot branch is such a run, and is counted like any other code. */
static void skipped(struct te_counter *c, uint32_t index) {
    const uint32_t from = (c->next - c->code_base) >> 1;
    c->instructions += c->before[index] - c->before[from];
    c->cycles += c->cycles_sum[index] - c->cycles_sum[from];
    executed(c, from, index);
    c->refill = TE_REFILL(c->slots[c->last[index]]);
    c->next = c->code_base + 2 * index;
}

void te_count_each(void *engine, uint64_t address, uint32_t size, void *user) {
    struct te_counter *c = user;
    const uint32_t here = (uint32_t)address, index = (here - c->code_base) >> 1;
    if (index >= c->slot_count) {
        fail(c, engine, TE_NOT_CODE);
        return;
    }
    if (here != c->next && c->refill == 0) skipped(c, index);
    arrive(c, engine, here, index);
    const uint32_t slot = c->slots[index];
    c->instructions += 1;
    c->cycles += TE_CYCLES(slot);
    executed(c, index, index + (size >> 1));
    c->refill = TE_REFILL(slot);
    c->next = here + size;
    if (c->instructions >= c->limit) c->stop(engine);
}

/* Runs behind each instruction that moves the stack pointer.  A value outside the reserved stack is no
 * stack pointer (hand-written kernels use the register for other things) or is about to fault. */
void te_watch_stack(void *engine, uint64_t address, uint32_t size, void *user) {
    struct te_counter *c = user;
    const uint32_t sp = read_register(c, engine, c->sp_register);
    (void)address;
    (void)size;
    if (sp < c->sp_low && sp >= c->sp_limit && sp <= c->sp_top) c->sp_low = sp;
}

/* Takes back a side effect of being called.  Before it reports an access, unicorn (2.1.4) restores the program
 * counter of the instruction, and with it the state of the IT block around it, into the registers.  The
 * translated code does not expect that: its conditions are translated too, and the state that it keeps is
 * "no IT block".  Left as restored, it would make the first instructions of the next block that is looked up
 * conditional: skipped, or run without setting the flags (unicorn issue 2309).  A block of code that ends
 * inside of an IT block writes the state itself, after its last access. */
static void leave_it_block(const struct te_trace *t, void *engine) {
    const uint32_t epsr = TE_EPSR_T;
    t->reg_write(engine, t->epsr_register, &epsr);
}

/* kind: 16 a read, 17 a write (UC_MEM_READ, UC_MEM_WRITE); the window is checked byte by byte, since an
 * access may straddle its edge. */
void te_trace_access(void *engine, int kind, uint64_t address, int size, int64_t value, void *user) {
    struct te_trace *t = user;
    uint32_t *counts = kind == 17 ? t->writes : t->reads;
    uint32_t *cells = (kind == 17 ? t->cell_writes : t->cell_reads) + running(t->counter) * t->cells;
    (void)value;
    leave_it_block(t, engine);
    for (int i = 0; i < size; ++i) {
        const uint64_t at = address + (uint64_t)i - t->base;
        if (at < t->bytes) {
            counts[at] += 1;
            cells[at / t->cell_bytes] += 1;
        }
    }
}
