/* Tells which sources the library was built from: a stale one is not used. */
#include "kernels.h"

const char *d2s_source_digest(void) { return D2S_SOURCE_DIGEST; }
