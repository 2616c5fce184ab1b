#include "tools/commands.h"

int main(int argc, char** argv) { return weightfs::RunProgramMain(argc, argv); }
