// gmock matchers for Result and Error.

#ifndef WEIGHTFS_TESTS_SUPPORT_MATCHERS_H_
#define WEIGHTFS_TESTS_SUPPORT_MATCHERS_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "formats/base/result.h"

namespace weightfs {

inline std::string DescribeFailure(const Error& error) {
  return error.ToString();
}

// The Result holds a value.
MATCHER(IsOk, negation ? "is an error" : "is OK") {
  if (arg.has_value()) return true;
  *result_listener << DescribeFailure(arg.error());
  return false;
}

// The Result holds a value that matches `inner`.
MATCHER_P(IsOkAndHolds, inner, "is OK and holds a value that matches") {
  if (!arg.has_value()) {
    *result_listener << DescribeFailure(arg.error());
    return false;
  }
  return ::testing::ExplainMatchResult(inner, arg.value(), result_listener);
}

// The Result holds an Error with this code.
MATCHER_P(HasCode, code, "is an error of the code") {
  if (arg.has_value()) {
    *result_listener << "is OK";
    return false;
  }
  *result_listener << DescribeFailure(arg.error());
  return arg.error().code() == code;
}

// The Result holds an Error whose message matches `inner`.
MATCHER_P(HasMessage, inner, "is an error with a message that matches") {
  if (arg.has_value()) {
    *result_listener << "is OK";
    return false;
  }
  return ::testing::ExplainMatchResult(inner, arg.error().message(),
                                       result_listener);
}

#define ASSERT_OK(expression) ASSERT_THAT(expression, ::weightfs::IsOk())
#define EXPECT_OK(expression) EXPECT_THAT(expression, ::weightfs::IsOk())

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_MATCHERS_H_
