/* The cache of cache/LAYOUT.md as a model: one object with one slab and one
 * granule, two daemons, a client that maps the file, an evictor; a process may
 * be killed anywhere, the disk may lose dirty pages of `data` and of `meta`.
 * spin explores every interleaving; each of these macros breaks one rule, and
 * CMakeLists.txt beside this says what must be found then.
 *
 *   NO_PIN                 a reader loads entries without the shared lock
 *   NO_HASH                a reader trusts an entry that it has not checked
 *   NO_QUESTION            a reader does not ask whether write-back failed
 *   DATA_AFTER_ENTRY       a publisher stores the entry, then the bytes
 *   PUBLISH_WITHOUT_PIN    a publisher holds no shared lock
 *   UNLOCK_BEFORE_PUNCH    the evictor unlocks, then punches
 *   PUNCH_BEFORE_ENTRY     the evictor punches, then zeroes the entry
 *   NO_MSYNC               the evictor punches before the disk has its entries
 *   READERS_DESCRIPTION    the evictor locks on daemon 1's open description
 *   CLOSE_AT_RELEASE       a passthrough registration ends with its last fd
 *   UNPINNED_REGISTRATION  a registration holds no shared lock
 *   SEAL_WITHOUT_SYNC      sealed without fdatasync
 *   SYNC_BEFORE_HASH       sealed after fdatasync and the hash, in this order
 *   SEAL_BEFORE_HASH       sealed before the bytes were hashed
 *   SEAL_WITHOUT_GENERATION  sealed though bytes may be others by then
 *   TRUST_OLD_BOOT         a sealed state of another boot counts
 *   CLAIM_OUTLIVES_DEATH   a dead process's claim stays
 *   NO_CLAIM               nobody claims: two fetch at once
 *   NO_GENERATION          hashes are kept over generations
 *
 * And to say what is looked at: CLAIMS_DO_NOT_MATTER (two may fetch at once),
 * NO_CLIENT, LOSES_ENTRIES_ONLY (the page of `meta` that is lost is not the one
 * with generations and state).
 *
 * Loads and stores are atomic and seen by all in one order: of a release store
 * and an acquire load this is the part that the protocol needs. A granule is
 * two halves, since a pwrite and a pread take two steps here and tear between
 * them. */

#ifndef READS
#define READS 2      /* by daemon 1 */
#endif
#ifndef FETCHES
#define FETCHES 2    /* by daemon 2, each followed by sealing and an open */
#endif
#ifndef EVICTIONS
#define EVICTIONS 2
#endif
#ifndef KILLS
#define KILLS 1
#endif
#ifndef LOSSES
#define LOSSES 1     /* of data and meta together */
#endif

/* Bytes of half a granule. A hole reads as ZERO. */
#define ZERO 0
#define JUNK 1
#define GOOD 2

/* An entry. */
#define ABSENT 0
#define NAMED 1      /* the hash of the good bytes */

/* A state. */
#define OPEN 0
#define SEALED_BEFORE 1  /* with the id of another boot */
#define SEALED 2

/* Open file descriptions of `data`, each of one process, and the OFD lock that
 * each holds on the slab. */
#define DAEMON1 0
#define DAEMON2 1
#define EVICTOR 2
#define CLIENT 3     /* of a registration, or of a passed fd and its mappings */
#define NONE 0
#define SHARED 1
#define EXCLUSIVE 2
byte lock[4];

#ifdef READERS_DESCRIPTION
#define EVICTS DAEMON1
#undef KILLS
#define KILLS 0
#else
#define EVICTS EVICTOR
#endif

/* The kernel's pages and the disk below them. */
byte page[2], disk[2];
bool dirty[2];
bool failed[2];      /* per daemon's description: a write-back error to tell */

/* meta: mapped by all, and what the disk has of it. */
byte entry, entry_disk;
byte state, state_disk;
byte generation, generation_disk;
bool meta_failed;    /* an error to tell the evictor's msync */

byte claim = NONE;   /* 1 + the daemon that holds it */
bool registered, handle, mapped;
bool kill[3];

/* Ghosts: what the properties speak of. */
bool named_here;     /* the entry was published since the model began */
bool data_lost;      /* the disk lost data: entries may name zeros */
byte flights;        /* fetches under way */

#define BYTES_ARE_GOOD (page[0] == GOOD && page[1] == GOOD)

/* ---- locks ------------------------------------------------------------- */

inline LockShared(description, got) {
  d_step {
    got = !(lock[EVICTS] == EXCLUSIVE && description != EVICTS);
    if
    :: got -> lock[description] = SHARED
    :: else
    fi
  }
}

#define HELD(description) (description != EVICTS && lock[description] != NONE)

inline LockExclusive(got) {
  d_step {
    got = !(HELD(DAEMON1) || HELD(DAEMON2) || HELD(CLIENT));
    if
    :: got -> lock[EVICTS] = EXCLUSIVE
    :: else
    fi
  }
}

/* Forgets what nobody will look at, too: states that differ in it are one. */
inline Unlock(description) {
  d_step {
    lock[description] = NONE;
    b0 = 0; b1 = 0; hashes_now = 0; told = false
  }
}

/* ---- reading and publishing, by daemon d -------------------------------- */

inline ForgetOldHashes() {
#ifdef NO_GENERATION
  skip
#else
  d_step {
    if
    :: hashes_of != generation -> hashed = false; hashes_of = generation
    :: else
    fi
  }
#endif
}

/* No seal, a new generation, then the entry, if it is still the one seen. */
inline Wipe() {
  d_step {
    if
    :: state == SEALED -> state = OPEN
    :: else
    fi
  };
  generation++;
  d_step {
    if
    :: entry == NAMED -> entry = ABSENT; named_here = false
    :: else
    fi
  }
}

/* `ok`: they are the ones that the entry names. */
inline ReadBytes() {
  b0 = page[0];
  d_step { b1 = page[1]; ok = (b0 == GOOD && b1 == GOOD) }
}

/* `told`: write-back failed since the last question; no hash counts. */
inline AskForLosses(d, told) {
#ifdef NO_QUESTION
  told = false
#else
  d_step {
    told = failed[d];
    failed[d] = false;
    if
    :: told -> hashed = false
    :: else
    fi
  }
#endif
}

/* The bytes of a pinned granule, hashed if that was not done: `ok` and b0, b1,
 * or wiped because they differ twice. */
inline ReadAndHash() {
  hashes_now = generation;
  ReadBytes();
  if
  :: !ok -> ReadBytes()
  :: else
  fi;
#ifdef NO_HASH
  ok = true;
#endif
  if
  :: ok -> d_step { hashed = (generation == hashes_now) }
  :: else -> Wipe()
  fi
}

/* `ok`: bytes were taken, and they are right. */
inline Read(d) {
#ifdef NO_PIN
  ok = true;
#else
  LockShared(d, ok);
#endif
  told = ok;
  do
  :: !told -> break
  :: d_step { told -> told = false };
    ForgetOldHashes();
    if
    :: entry == ABSENT -> ok = false
    :: else ->
      if
      :: hashed -> ReadBytes(); ok = true
      :: else -> ReadAndHash()
      fi;
      if
      :: ok ->
        AskForLosses(d, told);
        d_step {
          assert(told || (b0 == GOOD && b1 == GOOD));
          b0 = 0; b1 = 0; hashes_now = 0
        }
      :: else
      fi
    fi
  od;
  Unlock(d)
}

inline Publish() {
  d_step {
    entry = NAMED;
    named_here = true;
    assert(BYTES_ARE_GOOD || data_lost)
  }
}

inline WriteHalf(half) {
  d_step { page[half] = GOOD; dirty[half] = true }
}

inline PutPinned(d) {
  ok = false;
  if
  :: entry == NAMED ->
    ForgetOldHashes();
    AskForLosses(d, told);
    if
    :: hashed -> ok = true
    :: else -> ReadAndHash()
    fi
  :: else
  fi;
  if
  :: ok
  :: else ->
#ifdef DATA_AFTER_ENTRY
    entry = NAMED;
    named_here = true;
#endif
    WriteHalf(0);
    if
    :: true ->
      WriteHalf(1);
      Publish()
    :: true          /* the disk refused: the entry stays 0 */
    fi
  fi
}

inline Put(d) {
#ifdef PUBLISH_WITHOUT_PIN
  PutPinned(d);
  Unlock(d)
#else
  LockShared(d, ok);
  if
  :: ok -> PutPinned(d); Unlock(d)
  :: else            /* being evicted: served and not kept */
  fi
#endif
}

/* One fetch of the granule for all, or a wait for who fetches it. */
inline Fetch(d) {
  if
  :: entry == NAMED  /* polled */
#ifdef NO_CLAIM
  :: entry == ABSENT ->
#else
  :: atomic { claim == NONE -> claim = 1 + d };
#endif
    if
    :: entry == ABSENT ->
      flights++;
#ifndef CLAIMS_DO_NOT_MATTER
      assert(flights == 1);
#endif
      Put(d);
      flights--
    :: else          /* by who held the claim before */
    fi;
#ifndef NO_CLAIM
    claim = NONE
#endif
  fi
}

/* ---- processes ---------------------------------------------------------- */

/* Reads with pread; fetches what is absent. */
proctype Daemon1() {
  bool ok, told, hashed;
  byte hashes_of, hashes_now, b0, b1, reads;
again:
  {
    do
    :: reads == READS -> break
    :: d_step { reads < READS -> reads++ };
      Read(DAEMON1);
      if
      :: ok
      :: else -> Fetch(DAEMON1)
      fi
    od
  } unless {
    d_step {
      kill[DAEMON1];
      kill[DAEMON1] = false;
      ok = false; told = false; hashed = false;
      hashes_of = 0; hashes_now = 0; b0 = 0; b1 = 0
    };
    goto again
  }
}

/* fdatasync, and what the kernel has to tell. */
inline Sync() {
  d_step {
    ok = !failed[DAEMON2];
    if
    :: ok ->
      disk[0] = page[0]; dirty[0] = false;
      disk[1] = page[1]; dirty[1] = false
    :: else -> failed[DAEMON2] = false; hashed = false
    fi
  }
}

/* The hash, then the sync: bytes that another process writes between a sync and
 * the hash would be taken for bytes on the disk. Between the hash and the sync
 * there may be no lock, as long as the generation stays. */
inline Seal() {
  d_step { hashes_seal = generation };
  LockShared(DAEMON2, ok);
  if
  :: ok && entry == NAMED ->
#ifdef SEAL_BEFORE_HASH
    state = SEALED;
#endif
#ifdef SYNC_BEFORE_HASH
    Sync();
#endif
    if
    :: ok -> ReadBytes()
    :: else
    fi
  :: else -> ok = false
  fi;
  Unlock(DAEMON2);
  if
  :: ok ->
    LockShared(DAEMON2, ok);
    if
#ifdef SEAL_WITHOUT_GENERATION
    :: ok ->
#else
    :: ok && entry == NAMED && generation == hashes_seal ->
#endif
#if !defined(SEAL_WITHOUT_SYNC) && !defined(SYNC_BEFORE_HASH)
      Sync();
#endif
      if
      :: ok -> state = SEALED
      :: else
      fi
#ifndef SEAL_WITHOUT_GENERATION
      ;
      if             /* a wipe that came between */
      :: ok && generation != hashes_seal -> state = OPEN
      :: else
      fi
#endif
    :: else
    fi;
    Unlock(DAEMON2)
  :: else
  fi;
  hashes_seal = 0
}

#ifdef TRUST_OLD_BOOT
#define IS_SEALED (state != OPEN)
#else
#define IS_SEALED (state == SEALED)
#endif

inline OpenForClient() {
#ifdef UNPINNED_REGISTRATION
  ok = true;
#else
  LockShared(CLIENT, ok);
#endif
  if
  :: ok ->
    if
    :: IS_SEALED -> d_step { registered = true; handle = true }
    :: else -> lock[CLIENT] = NONE
    fi
  :: else
  fi
}

/* Fetches, seals, and opens the file for a client. */
proctype Daemon2() {
  bool ok, told, hashed;
  byte hashes_of, hashes_now, hashes_seal, b0, b1, fetches;
again:
  {
    do
    :: fetches == FETCHES -> break
    :: d_step { fetches < FETCHES -> fetches++ };
      Fetch(DAEMON2);
#ifndef NO_CLIENT
      if
      :: !registered ->
        if
        :: state != SEALED -> Seal()
        :: else
        fi;
        OpenForClient()
      :: else
      fi
#endif
    od
  } unless {
    d_step {
      kill[DAEMON2];
      kill[DAEMON2] = false;
      ok = false; told = false; hashed = false;
      hashes_of = 0; hashes_now = 0; hashes_seal = 0; b0 = 0; b1 = 0
    };
    goto again
  }
}

/* The client with its mapping, and the kernel. Nothing here hashes. It outlives
 * daemon 2; its own death is a close and an unmap. */
proctype Client() {
  byte b;
end:
  do
  :: handle && !mapped -> mapped = true
  :: d_step { handle ->
      handle = false;    /* RELEASE, though the mapping may live */
#ifdef CLOSE_AT_RELEASE
      registered = false;
      lock[CLIENT] = NONE
#endif
    }
  :: mapped ->
    if
    :: b = page[0]
    :: b = page[1]
    fi;
    assert(b == GOOD);
    b = 0
  :: mapped -> mapped = false
  :: d_step { registered && !handle && !mapped ->
      registered = false;  /* FORGET */
      lock[CLIENT] = NONE
    }
  od
}

inline Punch() {
  d_step {
    assert(entry == ABSENT || !named_here);
    page[0] = ZERO; disk[0] = ZERO; dirty[0] = false;
    page[1] = ZERO; disk[1] = ZERO; dirty[1] = false
  }
}

inline ZeroEntry() {
  d_step { entry = ABSENT; named_here = false }
}

proctype Evictor() {
  bool ok;
  byte evictions;
again:
  {
    do
    :: evictions == EVICTIONS -> break
    :: d_step { evictions < EVICTIONS -> evictions++ };
      LockExclusive(ok);
      if
      :: ok ->
        if
        :: state != OPEN -> state = OPEN
        :: else
        fi;
        generation++;
#ifdef PUNCH_BEFORE_ENTRY
        Punch();
#endif
        ZeroEntry();
#ifndef NO_MSYNC
        d_step {     /* msync */
          ok = !meta_failed;
          meta_failed = false;
          if
          :: ok ->
            entry_disk = entry;
            state_disk = state;
            generation_disk = generation
          :: else
          fi
        };
#endif
#ifdef UNLOCK_BEFORE_PUNCH
        lock[EVICTS] = NONE;
#endif
        if
        :: ok -> Punch()
        :: else
        fi;
        lock[EVICTS] = NONE
      :: else
      fi
    od
  } unless {
    d_step { kill[EVICTOR]; kill[EVICTOR] = false; ok = false };
    goto again
  }
}

inline Die(process) {
  d_step {
    /* What it leaves behind. */
    assert(entry == ABSENT || !named_here || BYTES_ARE_GOOD || data_lost);
    kill[process] = true;
    lock[process] = NONE;
    if
    :: process == DAEMON2 && !registered -> lock[CLIENT] = NONE
    :: else
    fi;
    if
    :: claim == 1 + process ->
      flights = 0;
#ifndef CLAIM_OUTLIVES_DEATH
      claim = NONE
#endif
    :: else
    fi
  }
}

/* SIGKILL, and a disk that takes what it was given back. */
proctype Trouble() {
  byte kills, losses;
end:
  do
  :: kills < KILLS ->
    kills++;
    if
    :: Die(DAEMON1)
    :: Die(DAEMON2)
    :: Die(EVICTOR)
    fi
  :: atomic { losses < LOSSES && (dirty[0] || dirty[1]) ->
      losses++;
      if             /* pages of data: one or both */
      :: dirty[0] -> page[0] = disk[0]; dirty[0] = false
      :: dirty[1] -> page[1] = disk[1]; dirty[1] = false
      :: dirty[0] && dirty[1] ->
        page[0] = disk[0]; dirty[0] = false;
        page[1] = disk[1]; dirty[1] = false
      fi;
      data_lost = true;
      failed[DAEMON1] = true;
      failed[DAEMON2] = true
    }
  :: d_step { losses < LOSSES ->
      losses++;
      entry = entry_disk;
#ifndef LOSES_ENTRIES_ONLY
      state = state_disk;
      generation = generation_disk;
#endif
      named_here = false;
      meta_failed = true
    }
  :: atomic { entry_disk != entry || state_disk != state ->
      entry_disk = entry;  /* written back in its own time */
      state_disk = state;
      generation_disk = generation
    }
  od
}

/* What an earlier boot left: any bytes, with or without an entry. */
init {
  atomic {
    if
    :: page[0] = ZERO; page[1] = ZERO
    :: page[0] = JUNK; page[1] = GOOD
    :: page[0] = GOOD; page[1] = GOOD
    fi;
    if
    :: entry = ABSENT
    :: entry = NAMED
    fi;
    if
    :: state = OPEN
    :: state = SEALED_BEFORE
    fi;
    disk[0] = page[0];
    disk[1] = page[1];
    entry_disk = entry;
    state_disk = state;
    run Daemon1();
    run Daemon2();
    run Client();
    run Evictor();
    run Trouble()
  }
}
