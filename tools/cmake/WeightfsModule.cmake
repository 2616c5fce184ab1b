# weightfs_module(NAME DIR LIBS...): the static library weightfs_NAME made of
# every .cc in DIR (not in its sub-folders), fuzzers left out.
function(weightfs_module name dir)
  file(GLOB sources CONFIGURE_DEPENDS "${dir}/*.cc")
  list(FILTER sources EXCLUDE REGEX "_fuzzer\\.cc$")
  if(NOT sources)
    add_library(weightfs_${name} INTERFACE)
    target_link_libraries(weightfs_${name} INTERFACE weightfs_options ${ARGN})
    return()
  endif()
  add_library(weightfs_${name} STATIC ${sources})
  target_link_libraries(weightfs_${name} PUBLIC weightfs_options ${ARGN})
endfunction()
