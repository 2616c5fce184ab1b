// Runs a fuzz target over the files of a folder, under any compiler:
//
//   X_replay FOLDER
//
// A finding aborts; the line before it names the file.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: replay FOLDER\n";
    return 2;
  }
  size_t count = 0;
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(argv[1])) {
    if (!entry.is_regular_file()) continue;
    std::cout << entry.path().string() << std::endl;  // before it may abort
    std::ifstream stream(entry.path(), std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(stream), {}};
    const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
    LLVMFuzzerTestOneInput(data, bytes.size());
    // Every prefix too, of what is small.
    for (size_t size = 0; bytes.size() <= 4096 && size < bytes.size(); ++size) {
      const std::string prefix = bytes.substr(0, size);
      LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(prefix.data()),
                             prefix.size());
    }
    ++count;
  }
  if (count == 0) {
    std::cerr << argv[1] << " holds no seeds\n";
    return 1;
  }
  std::cout << count << " files\n";
  return 0;
}
