#include "tests/support/matchers.h"
