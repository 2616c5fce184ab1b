// Keeps the access token from those who may look at the process: other programs
// of the same user (/proc/PID/mem, /proc/PID/environ, ptrace), core dumps, and
// the programs that it starts.

#ifndef WEIGHTFS_TOOLS_SECRETS_H_
#define WEIGHTFS_TOOLS_SECRETS_H_

namespace weightfs {

// From now on only root may look into this process (PR_SET_DUMPABLE), and it
// leaves no core dump. A process that it forks is alike; a program that it
// starts is not.
void HideProcess();

// Overwrites the values of the variables that hold a token, where they lie:
// what /proc/PID/environ shows, too, and what programs inherit. REQUIRES: who
// needs the token has read it, and nobody reads those variables at the same
// time.
void WipeTokenVariables();

}  // namespace weightfs

#endif  // WEIGHTFS_TOOLS_SECRETS_H_
