// gcc 12 believes that _tile_loadconfig reads 8 bytes of the 64 that a tile configuration has, and
// drops the stores to the others: ggml's first tile operation then dies with SIGILL on CPUs with AMX.
// Included before every C++ file of a build with run-time dispatch; it does nothing elsewhere.
#pragma once
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg\t%X0" : : "m"(*(const char(*)[64])(config)))
#endif
