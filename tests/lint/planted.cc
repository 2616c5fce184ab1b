// Faults for clang-tidy to find (tidy_planted.sh); built, never run.

#include <string>
#include <utility>

namespace weightfs {

class Planted {
 public:
  Planted(int size) : size_(size) {}
  int BadName() const { return size_; }

 private:
  int size_;
};

size_t UseAfterMove(std::string Text) {
  const std::string taken = std::move(Text);
  return taken.size() + Text.size();
}

size_t Copies(std::string text) { return text.size() + Planted(1).BadName(); }

}  // namespace weightfs
