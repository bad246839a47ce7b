#include "guest.h"
const struct test memory_tests[] = { { NULL, NULL } };
