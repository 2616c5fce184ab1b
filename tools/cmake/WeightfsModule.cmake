# weightfs_module(NAME DIR LIBS...): the static library weightfs_NAME made of
# every .cc in DIR (not in its sub-folders), fuzzers left out.
function(weightfs_module name dir)
  file(GLOB sources CONFIGURE_DEPENDS "${dir}/*.cc")
  list(FILTER sources EXCLUDE REGEX "_fuzzer\\.cc$")
  add_library(weightfs_${name} STATIC ${sources})
  target_link_libraries(weightfs_${name} PUBLIC weightfs_options ${ARGN})
  # The fuzzers find their way by what the parsers' code reports.
  if(NOT dir MATCHES "/tools" AND CMAKE_CXX_COMPILER_ID MATCHES "Clang"
     AND WEIGHTFS_SANITIZE MATCHES "address")
    target_compile_options(weightfs_${name} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
endfunction()
