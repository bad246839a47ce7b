#include "guest.h"
const struct test count_tests[] = { { NULL, NULL } };
