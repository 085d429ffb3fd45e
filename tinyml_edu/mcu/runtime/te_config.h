/* Build options of the runtime.  The code generator writes this file anew for each project; this copy holds
 * the defaults, so that the runtime also compiles on its own.
 *
 * SPDX-License-Identifier: MIT
 */
#ifndef TE_CONFIG_H
#define TE_CONFIG_H

/* 0: convolutions and ADD round twice, as TensorFlow Lite's reference kernels do ("exact").
 * 1: every op rounds once, which saves instructions and differs by at most one code a layer ("fast"). */
#ifndef TE_REQUANT_FAST
#define TE_REQUANT_FAST 0
#endif

/* 1: convolutions take the form for computers with vector units, te_wide_*.h, which gives
 * the same codes.  Never for a board: it takes hundreds of kilobytes of stack. */
#ifndef TE_WIDE
#define TE_WIDE 0
#endif

/* 1: the core has the DSP extension of Armv7E-M (Cortex-M4, Cortex-M7), which the specialised kernels of a
 * generated model.c are written for.  Every other core, and the host, calls the plain kernels. */
#ifndef TE_DSP
#if defined(__ARM_FEATURE_DSP) && defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
#define TE_DSP 1
#else
#define TE_DSP 0
#endif
#endif

#endif
