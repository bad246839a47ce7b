#include "guest.h"
const struct test signal_tests[] = { { NULL, NULL } };
