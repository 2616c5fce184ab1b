// weightfs-bench-reader: reads what a job on standard input names (job.h), by
// read() or through mappings, with threads; compares every byte with the
// source once the clock has stopped; and prints what it took, in JSON.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <csignal>
#include <cstring>
#include <iostream>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "formats/base/mutex.h"
#include "formats/base/unique_fd.h"
#include "tests/bench/job.h"
#include "tests/bench/watch.h"

namespace weightfs {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kPage = 4096;

enum class Mode { kRead, kMmap, kDrop };
// How threads share the work: the next block; a part of each item each, front
// to back; the next item.
enum class Order { kBlocks, kParts, kItems };

struct Options {
  Mode mode = Mode::kRead;
  Order order = Order::kBlocks;
  size_t threads = 1;
  uint64_t block = 1 << 20;
  double limit = 0;  // seconds; 0: none
  bool check_at_once = false;
  std::vector<pid_t> watched;
};

struct Unit {
  size_t item = 0;
  uint64_t at = 0;
  uint64_t length = 0;
};

// An item's file, opened, and mapped if need be, by whoever needs it first.
class OpenedItem {
 public:
  OpenedItem() = default;
  OpenedItem(const OpenedItem&) = delete;
  OpenedItem& operator=(const OpenedItem&) = delete;
  ~OpenedItem() {
    if (map_ != nullptr) ::munmap(map_, map_size_);
  }

  // Errno's text if that fails.
  const std::string& Open(const Job::Item& item, bool mapped) {
    std::call_once(once_, [&] { OpenNow(item, mapped); });
    return error_;
  }
  int fd() const { return fd_.get(); }
  // Of the item's first byte. REQUIRES: opened, mapped.
  const std::byte* bytes() const { return map_ + skipped_; }

 private:
  void OpenNow(const Job::Item& item, bool mapped) {
    fd_.Reset(::open(item.path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd_.valid()) return Fail(item);
    if (!mapped || item.length == 0) return;
    skipped_ = item.offset % kPage;
    map_size_ = item.length + skipped_;
    void* const map =
        ::mmap(nullptr, map_size_, PROT_READ, MAP_PRIVATE, fd_.get(),
               static_cast<off_t>(item.offset - skipped_));
    if (map == MAP_FAILED) return Fail(item);
    map_ = static_cast<std::byte*>(map);
  }
  void Fail(const Job::Item& item) {
    error_ = item.path + ": " + std::generic_category().message(errno);
  }

  std::once_flag once_;
  std::string error_;
  UniqueFd fd_;
  std::byte* map_ = nullptr;
  size_t map_size_ = 0;
  uint64_t skipped_ = 0;
};

class Reading {
 public:
  Reading(const Job& job, const Options& options)
      : job_(job), options_(options), opened_(job.items().size()) {
    uint64_t at = 0;
    for (const Job::Item& item : job.items()) {
      places_.push_back(at);
      at += item.length;
    }
    Plan();
  }

  // Prints the JSON; the program's exit status.
  int Run();

 private:
  void Plan();
  void AddUnits(size_t item, uint64_t begin, uint64_t end,
                std::vector<Unit>& units) const;
  void Work(size_t thread);
  bool OutOfTime() const {
    return options_.limit > 0 &&
           std::chrono::duration<double>(Clock::now() - began_).count() >
               options_.limit;
  }
  bool Read(const Unit& unit, std::span<std::byte> out);
  bool Touch(const Unit& unit);
  void Waited(Clock::time_point since);
  void Fail(const std::string& text) EXCLUDES(mutex_);
  void CheckAll();
  std::span<std::byte> PlaceOf(const Unit& unit) const {
    return memory_->bytes().subspan(places_[unit.item] + unit.at, unit.length);
  }

  const Job& job_;
  const Options& options_;
  std::vector<OpenedItem> opened_;
  std::vector<uint64_t> places_;  // of each item, in memory_
  std::optional<TouchedMemory> memory_;
  // A list for each thread, or one that all take from.
  std::vector<std::vector<Unit>> units_;
  std::vector<std::atomic<size_t>> next_;
  std::vector<std::vector<Unit>> done_;  // by each thread
  Clock::time_point began_;
  std::atomic<int64_t> longest_ns_ = 0;
  std::atomic<uint64_t> bytes_ = 0;
  std::atomic<uint64_t> wrong_ = 0;
  std::atomic<bool> stopped_ = false;
  Mutex mutex_;
  std::string error_ GUARDED_BY(mutex_);
};

void Reading::AddUnits(size_t item, uint64_t begin, uint64_t end,
                       std::vector<Unit>& units) const {
  for (uint64_t at = begin; at < end; at += options_.block) {
    units.push_back({item, at, std::min(options_.block, end - at)});
  }
}

void Reading::Plan() {
  const auto& items = job_.items();
  const size_t threads = options_.threads;
  switch (options_.order) {
    case Order::kBlocks:
      units_.resize(1);
      for (size_t i = 0; i < items.size(); ++i) {
        AddUnits(i, 0, items[i].length, units_[0]);
      }
      break;
    case Order::kParts:
      units_.resize(threads);
      for (size_t i = 0; i < items.size(); ++i) {
        const uint64_t pages = (items[i].length + kPage - 1) / kPage;
        for (size_t part = 0; part < threads; ++part) {
          const uint64_t end = pages * (part + 1) / threads * kPage;
          AddUnits(i, pages * part / threads * kPage,
                   std::min(end, items[i].length), units_[part]);
        }
      }
      break;
    case Order::kItems:
      units_.resize(items.size());
      for (size_t i = 0; i < items.size(); ++i) {
        AddUnits(i, 0, items[i].length, units_[i]);
      }
      break;
  }
  next_ = std::vector<std::atomic<size_t>>(units_.size() + 1);
  done_.resize(threads);
}

void Reading::Waited(Clock::time_point since) {
  const int64_t took = std::chrono::nanoseconds(Clock::now() - since).count();
  int64_t longest = longest_ns_;
  while (took > longest && !longest_ns_.compare_exchange_weak(longest, took)) {
  }
}

void Reading::Fail(const std::string& text) {
  stopped_ = true;
  const MutexLock lock(mutex_);
  if (error_.empty()) error_ = text;
}

bool Reading::Read(const Unit& unit, std::span<std::byte> out) {
  const Job::Item& item = job_.items()[unit.item];
  uint64_t at = item.offset + unit.at;
  while (!out.empty()) {
    const auto asked = Clock::now();
    const ssize_t got = ::pread(opened_[unit.item].fd(), out.data(), out.size(),
                                static_cast<off_t>(at));
    Waited(asked);
    if (got <= 0) {
      Fail(item.path + ": " +
           (got == 0 ? "ends too early"
                     : std::generic_category().message(errno)));
      return false;
    }
    out = out.subspan(static_cast<size_t>(got));
    at += static_cast<uint64_t>(got);
  }
  return true;
}

bool Reading::Touch(const Unit& unit) {
  const std::byte* const bytes = opened_[unit.item].bytes();
  for (uint64_t at = unit.at; at < unit.at + unit.length; at += kPage) {
    const auto asked = Clock::now();
    static_cast<void>(*static_cast<const volatile std::byte*>(bytes + at));
    Waited(asked);
  }
  return true;
}

void Reading::Work(size_t thread) {
  const bool mapped = options_.mode == Mode::kMmap;
  std::vector<std::byte> block(options_.check_at_once ? options_.block : 0);
  size_t list = options_.order == Order::kParts ? thread : 0;
  if (options_.order == Order::kItems) list = next_.back()++;
  while (list < units_.size() && !stopped_ && !OutOfTime()) {
    const size_t number = next_[list]++;
    if (number >= units_[list].size()) {
      if (options_.order != Order::kItems) return;
      list = next_.back()++;
      continue;
    }
    const Unit& unit = units_[list][number];
    const Job::Item& item = job_.items()[unit.item];
    const std::string& error = opened_[unit.item].Open(item, mapped);
    if (!error.empty()) return Fail(error);
    const std::span<std::byte> place = mapped ? std::span<std::byte>()
                                       : options_.check_at_once
                                           ? std::span(block).first(unit.length)
                                           : PlaceOf(unit);
    if (!(mapped ? Touch(unit) : Read(unit, place))) return;
    bytes_ += unit.length;
    if (options_.check_at_once) {
      wrong_ += job_.CountWrong(
          item, unit.at,
          mapped ? std::span(opened_[unit.item].bytes() + unit.at, unit.length)
                 : std::span<const std::byte>(place));
    } else {
      done_[thread].push_back(unit);
    }
  }
}

void Reading::CheckAll() {
  std::vector<std::jthread> checkers;
  for (const auto& units : done_) {
    checkers.emplace_back([this, &units] {
      for (const Unit& unit : units) {
        const auto read =
            options_.mode == Mode::kMmap
                ? std::span(opened_[unit.item].bytes() + unit.at, unit.length)
                : std::span<const std::byte>(PlaceOf(unit));
        wrong_ += job_.CountWrong(job_.items()[unit.item], unit.at, read);
      }
    });
  }
}

int Reading::Run() {
  if (options_.mode == Mode::kRead && !options_.check_at_once) {
    auto memory = TouchedMemory::Make(job_.bytes());
    if (!memory) {
      std::cerr << memory.error().ToString() << '\n';
      return 1;
    }
    memory_.emplace(*std::move(memory));
  }
  std::barrier start(static_cast<std::ptrdiff_t>(options_.threads) + 1);
  std::vector<std::jthread> threads;
  for (size_t i = 0; i < options_.threads; ++i) {
    threads.emplace_back([this, &start, i] {
      start.arrive_and_wait();  // they are there
      start.arrive_and_wait();  // the clock runs
      Work(i);
    });
  }
  start.arrive_and_wait();
  began_ = Clock::now();
  Watch watch(options_.watched);
  start.arrive_and_wait();
  threads.clear();
  watch.Stop();
  if (options_.mode == Mode::kRead || options_.mode == Mode::kMmap) CheckAll();
  const MutexLock lock(mutex_);
  if (!error_.empty()) {
    std::cerr << error_ << '\n';
    return 1;
  }
  std::cout << fmt::format(
      R"({{"seconds":{:.6f},"bytes":{},"complete":{},"wrong_bytes":{},)"
      R"("longest":{:.6f},"cpu":{:.3f},"others":{}}})"
      "\n",
      watch.seconds(), bytes_.load(), bytes_ == job_.bytes(), wrong_.load(),
      static_cast<double>(longest_ns_) / 1e9, watch.own_cpu_seconds(),
      watch.OthersJson());
  return 0;
}

// --- dropping pages ---

// What part of the file the page cache holds.
double Resident(int fd, size_t size) {
  void* const map = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) return 1;
  std::vector<unsigned char> pages((size + kPage - 1) / kPage);
  size_t resident = pages.size();
  if (::mincore(map, size, pages.data()) == 0) {
    resident = static_cast<size_t>(
        std::count_if(pages.begin(), pages.end(),
                      [](unsigned char page) { return (page & 1) != 0; }));
  }
  ::munmap(map, size);
  return static_cast<double>(resident) / static_cast<double>(pages.size());
}

// Takes the files' pages out of the page cache; prints what part is left.
int Drop(const Job& job) {
  double worst = 0;
  for (const Job::Item& item : job.items()) {
    const UniqueFd fd(::open(item.path.c_str(), O_RDONLY | O_CLOEXEC));
    const off_t size = fd.valid() ? ::lseek(fd.get(), 0, SEEK_END) : -1;
    if (size < 0) {
      std::cerr << item.path << ": " << std::generic_category().message(errno)
                << '\n';
      return 1;
    }
    if (size == 0) continue;
    ::fdatasync(fd.get());  // a file that cannot be written to has no need
    double resident = 1;
    // A page that another processor still has in hand stays at the first try.
    for (int tries = 0; tries < 3 && resident > 0; ++tries) {
      ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);
      resident = Resident(fd.get(), static_cast<size_t>(size));
    }
    worst = std::max(worst, resident);
  }
  std::cout << fmt::format(R"({{"resident":{:.6f}}})", worst) << '\n';
  return 0;
}

// A page fault that could not be served.
void OnBusError(int /*signal*/) {
  constexpr char kText[] = "SIGBUS: a page could not be read\n";
  static_cast<void>(::write(STDERR_FILENO, kText, sizeof kText - 1) < 0);
  ::_exit(1);
}

int Run(const Options& options) {
  const auto job = Job::Parse(std::cin);
  if (!job) {
    std::cerr << job.error().ToString() << '\n';
    return 2;
  }
  if (options.mode == Mode::kDrop) return Drop(*job);
  struct sigaction action {};
  action.sa_handler = OnBusError;
  ::sigaction(SIGBUS, &action, nullptr);
  return Reading(*job, options).Run();
}

}  // namespace
}  // namespace weightfs

// NOLINTNEXTLINE(bugprone-exception-escape): a test program may end so
int main(int argc, char** argv) {
  using weightfs::Mode;
  using weightfs::Order;
  const std::map<std::string, Mode> modes = {
      {"read", Mode::kRead}, {"mmap", Mode::kMmap}, {"drop", Mode::kDrop}};
  const std::map<std::string, Order> orders = {{"blocks", Order::kBlocks},
                                               {"parts", Order::kParts},
                                               {"items", Order::kItems}};
  CLI::App app("Reads a job from standard input; compares and measures");
  weightfs::Options options;
  app.add_option("--mode", options.mode,
                 "read, mmap (one byte of each page), "
                 "drop (from the page cache)")
      ->transform(CLI::CheckedTransformer(modes));
  app.add_option("--order", options.order,
                 "What threads share: blocks, parts of items, items")
      ->transform(CLI::CheckedTransformer(orders));
  app.add_option("--threads", options.threads, "Threads")
      ->check(CLI::Range(1, 4096));
  app.add_option("--block", options.block, "Bytes of a read()")
      ->check(CLI::Range(4096, 1 << 30));
  app.add_option("--limit", options.limit, "Seconds, then it stops");
  app.add_flag("--check-at-once", options.check_at_once,
               "Compare while the clock runs, and keep nothing");
  app.add_option("--watch", options.watched, "Processes to watch");
  CLI11_PARSE(app, argc, argv);
  return weightfs::Run(options);
}
