# Build options, warnings, sanitizers and the libraries that weightfs uses.

option(WEIGHTFS_TESTS "Build the tests" ON)
option(WEIGHTFS_WERROR "Treat warnings as errors" OFF)
set(WEIGHTFS_SANITIZE "" CACHE STRING
    "Sanitizers to build with: address,undefined or thread")
set(WEIGHTFS_TEST_PREFIX "" CACHE STRING
    "Goes before the name of each test, to tell builds apart: gcc/")
option(WEIGHTFS_LINT "Let ctest run clang-tidy, clang-format and the like" OFF)

# Line tables are enough for back traces, and much quicker to make and to link
# than all of -g. The sanitizers' own checks cost most at -O2 and find no more.
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1 -DNDEBUG")
set(CMAKE_C_FLAGS_RELWITHDEBINFO "-O2 -g1 -DNDEBUG")
if(WEIGHTFS_SANITIZE)
  set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g1")
  set(CMAKE_C_FLAGS_RELWITHDEBINFO "-O1 -g1")
endif()

find_program(CCACHE ccache)
if(CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${CCACHE}")
  set(CMAKE_C_COMPILER_LAUNCHER "${CCACHE}")
endif()

find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(tl-expected REQUIRED)
find_package(fmt REQUIRED)
find_package(ZLIB REQUIRED)
find_package(CURL 7.76 REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(nlohmann_json REQUIRED)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)

# libfuse: one that tools/libfuse.sh built, or the system's.
set(WEIGHTFS_LIBFUSE "" CACHE PATH
    "A folder with lib/libfuse3.a and include/fuse3; empty: the system's")
add_library(weightfs_libfuse INTERFACE)
if(WEIGHTFS_LIBFUSE)
  target_include_directories(weightfs_libfuse SYSTEM INTERFACE
    "${WEIGHTFS_LIBFUSE}/include/fuse3")
  target_link_libraries(weightfs_libfuse INTERFACE
    "${WEIGHTFS_LIBFUSE}/lib/libfuse3.a" Threads::Threads ${CMAKE_DL_LIBS})
else()
  pkg_check_modules(FUSE3 REQUIRED IMPORTED_TARGET fuse3>=3.14)
  target_link_libraries(weightfs_libfuse INTERFACE PkgConfig::FUSE3)
endif()

# Everything of ours links this: warnings and sanitizers.
add_library(weightfs_options INTERFACE)
target_include_directories(weightfs_options INTERFACE "${CMAKE_SOURCE_DIR}")
target_compile_options(weightfs_options INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion)
target_compile_definitions(weightfs_options INTERFACE _FILE_OFFSET_BITS=64)
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  target_compile_options(weightfs_options INTERFACE
    -Wthread-safety -Werror=thread-safety)
  # A precompiled header with a time in it would never be found in ccache.
  target_compile_options(weightfs_options INTERFACE
    "SHELL:-Xclang -fno-pch-timestamp")
endif()
if(WEIGHTFS_WERROR)
  target_compile_options(weightfs_options INTERFACE -Werror)
endif()
if(WEIGHTFS_SANITIZE)
  target_compile_options(weightfs_options INTERFACE
    -fsanitize=${WEIGHTFS_SANITIZE} -fno-omit-frame-pointer
    -fno-sanitize-recover=all)
  target_link_options(weightfs_options INTERFACE
    -fsanitize=${WEIGHTFS_SANITIZE})
endif()
