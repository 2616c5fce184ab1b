#include "fs/fuse/kernel_settings.h"

#include <chrono>
#include <fstream>
#include <iterator>
#include <sstream>
#include <thread>

namespace weightfs {
namespace {

std::string ReadText(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::optional<uint32_t> ReadNumber(const std::string& path) {
  std::ifstream file(path);
  uint32_t number = 0;
  if (!(file >> number)) return std::nullopt;
  return number;
}

// mountinfo writes space, tab, newline and backslash as \ooo.
std::string DecodeOctal(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto digit = [&](size_t k) {
      return i + k < text.size() && text[i + k] >= '0' && text[i + k] <= '7';
    };
    if (text[i] == '\\' && digit(1) && digit(2) && digit(3)) {
      out += static_cast<char>((text[i + 1] - '0') * 64 +
                               (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace

std::optional<std::string> DeviceOfMount(const std::string& mountinfo,
                                         const std::string& mountpoint) {
  std::optional<std::string> device;
  std::istringstream lines(mountinfo);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream fields(line);
    std::string id;
    std::string parent;
    std::string numbers;
    std::string root;
    std::string path;
    if (fields >> id >> parent >> numbers >> root >> path &&
        DecodeOctal(path) == mountpoint) {
      device = numbers;  // a later line lies over an earlier one
    }
  }
  return device;
}

std::string DeviceOfMount(const std::string& mountpoint) {
  return DeviceOfMount(ReadText("/proc/self/mountinfo"), mountpoint)
      .value_or("");
}

uint32_t RaiseReadAhead(const std::string& device, uint32_t max_background,
                        uint32_t read_ahead_kb) {
  using std::chrono::milliseconds;
  if (device.empty()) return 0;
  // Before the INIT reply is taken, the kernel would overwrite the value.
  const std::string connection = "/sys/fs/fuse/connections/" +
                                 device.substr(device.find(':') + 1) +
                                 "/max_background";
  for (int i = 0; i < 200; ++i) {
    const auto seen = ReadNumber(connection);
    if (seen == max_background) break;
    std::this_thread::sleep_for(milliseconds(5));
    if (!seen && i >= 20) break;  // no fusectl here: 100 ms must do
  }
  const std::string bdi = "/sys/class/bdi/" + device + "/read_ahead_kb";
  const uint32_t before = ReadNumber(bdi).value_or(0);
  if (before < read_ahead_kb) std::ofstream(bdi) << read_ahead_kb << '\n';
  return ReadNumber(bdi).value_or(0);
}

}  // namespace weightfs
