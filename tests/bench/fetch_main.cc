// weightfs-bench-fetch: one file over HTTP into memory by libcurl, in parallel
// ranges, as `curl -L -r` would: what a download that knows no file system can
// do. Compares and measures as weightfs-bench-reader does.

#include <curl/curl.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstring>
#include <iostream>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "tests/bench/job.h"
#include "tests/bench/watch.h"

namespace weightfs {
namespace {

struct Options {
  std::string url;
  std::string source;
  size_t streams = 1;
  std::vector<pid_t> watched;
};

// What is left of a range's place.
struct Target {
  std::span<std::byte> left;
};

size_t OnBody(char* data, size_t one, size_t count, void* user) {
  auto& left = static_cast<Target*>(user)->left;
  const size_t size = one * count;
  if (size > left.size()) return 0;  // ends the transfer: more than asked for
  std::memcpy(left.data(), data, size);
  left = left.subspan(size);
  return size;
}

// An empty text if all of it came.
std::string FetchRange(const Options& options, uint64_t offset,
                       std::span<std::byte> out) {
  const std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> curl(
      curl_easy_init(), &curl_easy_cleanup);
  if (curl == nullptr) return "no memory";
  const std::string range =
      fmt::format("{}-{}", offset, offset + out.size() - 1);
  Target target{out};
  curl_easy_setopt(curl.get(), CURLOPT_URL, options.url.c_str());
  curl_easy_setopt(curl.get(), CURLOPT_RANGE, range.c_str());
  curl_easy_setopt(curl.get(), CURLOPT_FOLLOWLOCATION, 1L);
  curl_easy_setopt(curl.get(), CURLOPT_FAILONERROR, 1L);
  curl_easy_setopt(curl.get(), CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl.get(), CURLOPT_NOPROXY, "*");
  curl_easy_setopt(curl.get(), CURLOPT_BUFFERSIZE, 256L << 10);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEFUNCTION, &OnBody);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEDATA, &target);
  const CURLcode result = curl_easy_perform(curl.get());
  if (result != CURLE_OK) return curl_easy_strerror(result);
  return target.left.empty() ? "" : "too few bytes";
}

int Run(const Options& options) {
  const auto source = MappedFile::Open(options.source);
  if (!source) {
    std::cerr << source.error().ToString() << '\n';
    return 2;
  }
  const size_t size = source->bytes().size();
  const auto memory = TouchedMemory::Make(size);
  if (!memory) {
    std::cerr << memory.error().ToString() << '\n';
    return 2;
  }
  std::vector<std::string> errors(options.streams);
  Watch watch(options.watched);
  {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < options.streams; ++i) {
      threads.emplace_back([&, i] {
        const uint64_t begin = size * i / options.streams;
        const uint64_t end = size * (i + 1) / options.streams;
        if (begin == end) return;
        errors[i] = FetchRange(options, begin,
                               memory->bytes().subspan(begin, end - begin));
      });
    }
  }
  watch.Stop();
  for (const std::string& error : errors) {
    if (error.empty()) continue;
    std::cerr << options.url << ": " << error << '\n';
    return 1;
  }
  uint64_t wrong = 0;
  if (std::memcmp(memory->bytes().data(), source->bytes().data(), size) != 0) {
    for (size_t i = 0; i < size; ++i) {
      wrong += memory->bytes()[i] != source->bytes()[i];
    }
  }
  std::cout << fmt::format(
      R"({{"seconds":{:.6f},"bytes":{},"complete":true,"wrong_bytes":{},)"
      R"("cpu":{:.3f},"others":{}}})"
      "\n",
      watch.seconds(), size, wrong, watch.own_cpu_seconds(),
      watch.OthersJson());
  return 0;
}

}  // namespace
}  // namespace weightfs

// NOLINTNEXTLINE(bugprone-exception-escape): a test program may end so
int main(int argc, char** argv) {
  CLI::App app("Fetches a URL in parallel ranges; compares and measures");
  weightfs::Options options;
  app.add_option("--url", options.url, "What to fetch")->required();
  app.add_option("--source", options.source, "A file that it must equal")
      ->required();
  app.add_option("--streams", options.streams, "Ranges, and connections")
      ->check(CLI::Range(1, 1024));
  app.add_option("--watch", options.watched, "Processes to watch");
  CLI11_PARSE(app, argc, argv);
  curl_global_init(CURL_GLOBAL_DEFAULT);
  return weightfs::Run(options);
}
