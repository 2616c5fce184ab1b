// The stack machine that a pickle is a program for: each opcode has a row in a
// table (pickle.cc) and a method here. For pickle.cc and pickle_machine.cc
// only.

#ifndef WEIGHTFS_FORMATS_PICKLE_MACHINE_H_
#define WEIGHTFS_FORMATS_PICKLE_MACHINE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/base/byte_reader.h"
#include "formats/base/result.h"
#include "formats/pickle.h"

namespace weightfs {

class Pickle::Machine {
 public:
  explicit Machine(std::string_view bytes)
      : bytes_(bytes), reader_("pickle", std::as_bytes(std::span(bytes))) {
    pickle_.bytes_ = bytes;
    small_ints_.fill(kNoRef);
  }

  Result<> Run();
  // Whether Run failed because the bytes end too early.
  bool cut() const { return cut_; }
  Pickle Take() && { return std::move(pickle_); }

 private:
  struct Opcode {
    uint8_t code = 0;
    std::string_view name;
    Result<> (Machine::*run)() = nullptr;
  };
  static const Opcode* FindOpcode(uint8_t code);

  template <class... Args>
  Error Wrong(Code code, fmt::format_string<Args...> format,
              Args&&... args) const {
    return MakeError(code, "pickle: {} at offset {}: {}", opcode_->name, at_,
                     fmt::format(format, std::forward<Args>(args)...));
  }

  // What follows the opcode.
  template <class T>
  Result<T> Number() {
    auto number = reader_.Read<T>(opcode_->name);
    if (!number.has_value()) cut_ = true;
    return number;
  }
  Result<std::string_view> Bytes(uint64_t length) {
    auto bytes = reader_.String(opcode_->name, length);
    if (!bytes.has_value()) cut_ = true;
    return bytes;
  }
  // Up to the next line feed, which is left out.
  Result<std::string_view> Line();
  Result<size_t> DecimalLine();

  // Nodes and the stack.
  Result<Ref> Add(Node node);
  Result<Ref> AddText(Kind kind, std::string_view text);
  Result<Ref> AddDecoded(size_t begin);
  Result<Ref> AddInt(int64_t value);
  Result<Ref> AddTuple(std::span<const Ref> items);
  Result<> Push(Ref ref);
  Result<> PushNew(Result<Ref> made);
  size_t Fence() const { return marks_.empty() ? 0 : marks_.back(); }
  Result<Ref> Top() const;
  Result<Ref> Pop();
  // What lies above the last MARK, which is taken off the stack.
  Result<std::vector<Ref>> PopToMark();
  Result<> CountItems(size_t count);
  Extra& ExtraOf(Ref ref);

  // Opcodes: single values.
  Result<> Proto();
  Result<> Frame();
  Result<> Stop();
  Result<> Nothing() { return {}; }
  Result<> Refuse() {
    return Wrong(Code::kUnsupported, "is not read (data outside of the file)");
  }
  template <uint32_t kValue>
  Result<> Bool() {
    return PushNew(Add({Kind::kBool, kValue}));
  }
  Result<> None() { return PushNew(Add({Kind::kNone})); }
  template <class T>
  Result<> Int() {
    ASSIGN_OR_RETURN(const T value, Number<T>());
    return PushNew(AddInt(value));
  }
  Result<> IntLine();
  Result<> LongLine();
  template <class Length>
  Result<> Long();
  Result<> Float();
  Result<> FloatLine();
  template <class Length, Kind kKind>
  Result<> Counted() {
    ASSIGN_OR_RETURN(const Length length, Number<Length>());
    ASSIGN_OR_RETURN(const std::string_view text, Bytes(length));
    return PushNew(AddText(kKind, text));
  }
  Result<> QuotedLine();
  Result<> UnicodeLine();
  template <class T>
  Result<> Extension() {
    RETURN_IF_ERROR(Number<T>());
    return PushNew(Add({Kind::kOpaque}));
  }

  // Opcodes: containers.
  template <Kind kKind>
  Result<> Empty();
  Result<> EmptyTuple() { return PushNew(AddTuple({})); }
  template <size_t kCount>
  Result<> Tuple();
  Result<> MarkedTuple();
  template <Kind kKind>
  Result<> Marked();
  Result<> Append();
  Result<> Appends();
  Result<> SetItem();
  Result<> SetItems();
  Result<> AddItems() { return Appends(); }
  Result<> AppendTo(std::span<const Ref> items);
  Result<> SetIn(std::span<const Ref> items);

  // Opcodes: the stack and the memo.
  Result<> Mark();
  Result<> PopOne();
  Result<> PopMark() {
    RETURN_IF_ERROR(PopToMark());
    return {};
  }
  Result<> Dup();
  Result<> PutAt(size_t index);
  template <class T>
  Result<> Put() {
    ASSIGN_OR_RETURN(const T index, Number<T>());
    return PutAt(index);
  }
  Result<> PutLine() {
    ASSIGN_OR_RETURN(const size_t index, DecimalLine());
    return PutAt(index);
  }
  Result<> Memoize() { return PutAt(memo_count_); }
  Result<> GetAt(size_t index);
  template <class T>
  Result<> Get() {
    ASSIGN_OR_RETURN(const T index, Number<T>());
    return GetAt(index);
  }
  Result<> GetLine() {
    ASSIGN_OR_RETURN(const size_t index, DecimalLine());
    return GetAt(index);
  }

  // Opcodes: what Python would import, call or look up.
  Result<Ref> AddGlobal(Ref module, Ref name);
  Result<Ref> GlobalLines();
  Result<> Global() { return PushNew(GlobalLines()); }
  Result<> StackGlobal();
  template <Kind kKind>
  Result<> Call();
  Result<> NewObjectEx();
  Result<> Inst();
  Result<> Obj();
  Result<> Build();
  Result<> PersistentLine();
  Result<> Persistent();

  const std::string_view bytes_;
  ByteReader reader_;
  bool cut_ = false;
  bool stopped_ = false;
  const Opcode* opcode_ = nullptr;
  size_t at_ = 0;  // the opcode's offset

  Pickle pickle_;
  std::vector<Ref> stack_;
  std::vector<size_t> marks_;  // sizes that the stack had
  std::vector<Ref> memo_;
  size_t memo_count_ = 0;
  size_t items_ = 0;
  std::array<Ref, 256> small_ints_{};
};

}  // namespace weightfs

#endif  // WEIGHTFS_FORMATS_PICKLE_MACHINE_H_
