#include "guest.h"
const struct test pml_tests[] = { { NULL, NULL } };
