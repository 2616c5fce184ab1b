// Pickle: what a Python pickle says, read and never run. Values are nodes of a
// graph; where Python would import a class or call a function, there is a node
// that names it. Protocols 0 to 5. Spec: formats/torch.md.
//
// Input is hostile: an opcode that is not in the table is refused, and what a
// pickle can cost is bounded by the limits below. The graph may have cycles (a
// list that holds itself), and nodes that are reached on many ways.
//
// Immutable once made. Borrows the bytes, which must outlive it.

#ifndef WEIGHTFS_FORMATS_PICKLE_H_
#define WEIGHTFS_FORMATS_PICKLE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/base/result.h"

namespace weightfs {

// Bytes of one pickle.
inline constexpr uint64_t kMaxPickleSize = 64 << 20;
// Values, of 16 bytes each.
inline constexpr size_t kMaxPickleNodes = 1 << 22;
// References in tuples, lists and dicts, of 4 bytes each; and as many on the
// stack.
inline constexpr size_t kMaxPickleItems = 1 << 23;
// Entries of the memo, the highest index included.
inline constexpr size_t kMaxPickleMemo = 1 << 22;
// MARKs that are open at once: containers in the making within each other.
inline constexpr size_t kMaxPickleMarks = 4096;

class Pickle {
 public:
  // A node. Values are indexes, valid for the Pickle that gave them.
  using Ref = uint32_t;
  static constexpr Ref kNoRef = UINT32_MAX;

  enum class Kind : uint8_t {
    kNone,
    kBool,
    kInt,     // of 64 bits
    kBigInt,  // longer: Text() is its bytes, two's complement, low ones first
    kFloat,
    kString,  // any bytes; UTF-8 unless the file breaks Python's rules
    kBytes,
    kTuple,
    kList,
    kDict,
    kSet,
    kGlobal,      // a class or a function, by module and name
    kCall,        // callable(args), with what was put into the result
    kObject,      // the same by class.__new__(args)
    kPersistent,  // what the file's owner knows by an id: torch's storages
    kOpaque,      // a value that only the writer's registry knows (EXT)
  };

  // kCorrupt and kUnsupported name the opcode and its offset in `bytes`.
  static Result<Pickle> Parse(std::string_view bytes);
  // As Parse; nothing if `bytes` end before the pickle does.
  static Result<std::optional<Pickle>> ParsePrefix(std::string_view bytes);

  Ref root() const { return root_; }
  // Bytes from PROTO to STOP: another pickle may follow.
  uint64_t size() const { return size_; }
  size_t node_count() const { return nodes_.size(); }

  Kind kind(Ref ref) const { return nodes_[ref].kind; }
  // REQUIRES: kBool or kInt.
  int64_t Int(Ref ref) const;
  // REQUIRES: kFloat.
  double Float(Ref ref) const;
  // REQUIRES: kString, kBytes or kBigInt.
  std::string_view Text(Ref ref) const;
  // Of a tuple, list or set; of a dict: key, value, key, value, … as the file
  // sets them, a key perhaps several times, of which the last counts. Of a call
  // or object: what was set into it so. Else empty.
  std::span<const Ref> Items(Ref ref) const;
  // What was appended to a call's or an object's result. Else empty.
  std::span<const Ref> Appended(Ref ref) const;
  // REQUIRES: kGlobal.
  std::string_view Module(Ref ref) const { return Text(nodes_[ref].a); }
  std::string_view Name(Ref ref) const { return Text(nodes_[ref].b); }
  // REQUIRES: kCall or kObject.
  Ref Callable(Ref ref) const { return nodes_[ref].a; }
  // A tuple, as a rule.
  Ref Args(Ref ref) const { return nodes_[ref].b; }
  // What BUILD gave to __setstate__ or __dict__; kNoRef if it did not come.
  Ref State(Ref ref) const;
  // REQUIRES: kPersistent.
  Ref PersistentId(Ref ref) const { return nodes_[ref].a; }

  bool IsGlobal(Ref ref, std::string_view module, std::string_view name) const;
  bool IsText(Ref ref, std::string_view text) const;

 private:
  class Machine;

  // What a, b and c are depends on the kind:
  //   kBool kInt kFloat     the value's low and high 32 bits
  //   texts                 offset, length, 1 if it lies in decoded_
  //   kTuple                where in children_ it begins, how many
  //   kList kDict kSet      which of lists_
  //   kGlobal               nodes: module, name
  //   kCall kObject         nodes: callable, arguments; which of extras_ or
  //   none kPersistent           node: the id
  struct Node {
    Kind kind = Kind::kNone;
    uint32_t a = 0;
    uint32_t b = 0;
    uint32_t c = 0;
  };
  // What came to a call's result later.
  struct Extra {
    Ref state = kNoRef;
    std::vector<Ref> items;
    std::vector<Ref> appended;
  };

  Pickle() = default;
  const Extra* ExtraOf(Ref ref) const;

  std::string_view bytes_;
  std::string decoded_;  // texts that the file has with escapes
  std::vector<Node> nodes_;
  std::vector<Ref> children_;
  std::vector<std::vector<Ref>> lists_;
  std::vector<Extra> extras_;
  Ref root_ = kNoRef;
  uint64_t size_ = 0;
};

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_PICKLE_H_
