/* The inline functions of te_requant.h over arrays: a test compares millions of values with NumPy. */
#include "te_requant.h"

void requant_double_all(int32_t n, const int32_t *acc, const int32_t *multiplier, const int32_t *exponent,
                        int32_t *y);
void requant_single_all(int32_t n, const int32_t *acc, const int32_t *multiplier, const int32_t *exponent,
                        int32_t *y);
int32_t narrow(int32_t scaled, int32_t y_zp, int32_t y_min, int32_t y_max);

void requant_double_all(int32_t n, const int32_t *acc, const int32_t *multiplier, const int32_t *exponent,
                        int32_t *y) {
    for (int32_t i = 0; i < n; i++) {
        y[i] = te_requant_double(acc[i], multiplier[i], exponent[i]);
    }
}

void requant_single_all(int32_t n, const int32_t *acc, const int32_t *multiplier, const int32_t *exponent,
                        int32_t *y) {
    for (int32_t i = 0; i < n; i++) {
        y[i] = te_requant_single(acc[i], multiplier[i], exponent[i]);
    }
}

int32_t narrow(int32_t scaled, int32_t y_zp, int32_t y_min, int32_t y_max) {
    return te_narrow(scaled, y_zp, y_min, y_max);
}
