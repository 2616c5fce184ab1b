// A reader process of a chaos run: threads that open files of the mounts, read
// them in every way that there is, and close them, as a seed has it.

#ifndef WEIGHTFS_TESTS_CHAOS_READER_H_
#define WEIGHTFS_TESTS_CHAOS_READER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/chaos/board.h"
#include "tests/chaos/source.h"

namespace weightfs {

struct ReaderProcess {
  const ChaosSource* source = nullptr;
  Board* board = nullptr;
  std::vector<std::string> mounts;
  size_t first_slot = 0;
  size_t threads = 4;
  size_t number = 0;         // of the process
  uint64_t incarnation = 0;  // how often it was killed before
};

// Until the board says that the run ends.
void RunReaders(const ReaderProcess& process);

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_CHAOS_READER_H_
