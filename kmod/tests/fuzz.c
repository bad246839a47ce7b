#include "guest.h"
const struct test fuzz_tests[] = { { NULL, NULL } };
