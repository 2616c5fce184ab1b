// The fixture of tests/support/origin_contract.h, and what each kind of origin
// implements to run under it.

#ifndef WEIGHTFS_TESTS_SUPPORT_ORIGIN_FIXTURE_H_
#define WEIGHTFS_TESTS_SUPPORT_ORIGIN_FIXTURE_H_

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>

#include "cache/origin.h"
#include "tests/support/matchers.h"

namespace weightfs {

// Makes an origin of one kind over given files.
class OriginHost {
 public:
  virtual ~OriginHost() = default;
  // Called once. Path → content.
  virtual void Serve(const std::map<std::string, std::string>& files) = 0;
  virtual Origin& origin() = 0;
};

class OriginContractTest : public ::testing::TestWithParam<
                               std::function<std::unique_ptr<OriginHost>()>> {
 protected:
  OriginContractTest() : host_(GetParam()()) {
    std::mt19937_64 random(7);
    std::string big(3'000'001, '\0');
    for (char& c : big) c = static_cast<char>(random());
    files_ = {{"config.json", "{\"a\": 1}\n"},
              {"empty.txt", ""},
              {"model.safetensors", big},
              {"sub/dir/one.bin", "x"},
              {"sub/with space & %41 ü.txt", "odd name"}};
    host_->Serve(files_);
  }

  Origin& origin() { return host_->origin(); }
  FileInfo File(const std::string& path) {
    auto file = origin().Stat(path);
    EXPECT_OK(file);
    return file.value_or(FileInfo{});
  }

  std::map<std::string, std::string> files_;
  const std::unique_ptr<OriginHost> host_;
};

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_ORIGIN_FIXTURE_H_
