// Memory of handles: zeroed, counted, and tagged with a kind so that a wrong handle is an error.
#include "shim.h"

#ifdef __SANITIZE_ADDRESS__
#include <malloc.h>
#include <sanitizer/asan_interface.h>
#endif

// ---- The last few hundred that were destroyed ------------------------------------------------

// Their memory is kept a while, so that for a stale handle the answer is an error, not a crash. With
// thousands of them a dispatch would find its handles out of the cache, and take 3% longer.
static _Atomic(Handle*) dead[512];
static atomic_uint num_dead;

// The sanitizer keeps an eye on all but the head.
static void poison(Handle* handle, bool on) {
#ifdef __SANITIZE_ADDRESS__
  size_t size = malloc_usable_size(handle) - sizeof(Handle);
  if (on) ASAN_POISON_MEMORY_REGION(handle + 1, size);
  else ASAN_UNPOISON_MEMORY_REGION(handle + 1, size);
#else
  (void)handle;
  (void)on;
#endif
}

static void lay_out(Handle* handle) {
  poison(handle, true);
  unsigned place = atomic_fetch_add(&num_dead, 1) % (sizeof(dead) / sizeof(dead[0]));
  Handle* oldest = atomic_exchange(&dead[place], handle);
  if (oldest == NULL) return;
  poison(oldest, false);
  free(oldest);
}

// ---- Handles ---------------------------------------------------------------------------------

static atomic_int live;

int live_handles(void) { return atomic_load(&live); }

static bool belongs_to_another(Kind kind) {
  return kind == KIND_DEVICE || kind == KIND_MEMORY || kind == KIND_DESCRIPTION ||
         kind == KIND_MEMORY_DESCRIPTION;
}

void* handle_new(Kind kind, size_t size) {
  Handle* handle = calloc(1, size);
  if (handle == NULL) return NULL;
  handle->kind = kind;
  atomic_init(&handle->references, 1);
  atomic_init(&handle->owned, belongs_to_another(kind) ? LENT : 1);
  atomic_fetch_add_explicit(&live, 1, memory_order_relaxed);
  return handle;
}

bool handle_release(void* handle) {
  return atomic_fetch_sub_explicit(&((Handle*)handle)->references, 1, memory_order_acq_rel) == 1;
}

void handle_free(void* handle) {
  ((Handle*)handle)->kind = KIND_DEAD;
  atomic_fetch_sub_explicit(&live, 1, memory_order_relaxed);
  lay_out(handle);
}

void handle_set_owned(void* handle, int owned) {
  atomic_store(&((Handle*)handle)->owned, owned);
}

void handle_hand_out(void* handle) {
  atomic_fetch_add(&((Handle*)handle)->references, 1);
  atomic_fetch_add(&((Handle*)handle)->owned, 1);
}

bool handle_take_back(void* handle) {
  atomic_int* owned = &((Handle*)handle)->owned;
  int n = atomic_load(owned);
  while (n > 0 && !atomic_compare_exchange_weak(owned, &n, n - 1)) {}
  return n > 0;
}

// ---- Wrong handles ---------------------------------------------------------------------------

static const char* name_of(Kind kind) {
  switch (kind) {
    case KIND_ERROR: return "PJRT_Error";
    case KIND_EVENT: return "PJRT_Event";
    case KIND_CLIENT: return "PJRT_Client";
    case KIND_DEVICE: return "PJRT_Device";
    case KIND_MEMORY: return "PJRT_Memory";
    case KIND_DESCRIPTION: return "PJRT_DeviceDescription";
    case KIND_MEMORY_DESCRIPTION: return "PJRT_MemoryDescription";
    case KIND_TOPOLOGY: return "PJRT_TopologyDescription";
    case KIND_BUFFER: return "PJRT_Buffer";
    case KIND_EXECUTABLE: return "PJRT_Executable";
    case KIND_LOADED_EXECUTABLE: return "PJRT_LoadedExecutable";
    case KIND_LAYOUT: return "PJRT_Layouts_MemoryLayout";
    case KIND_DEAD: return "a destroyed handle";
  }
  return "something that is not a handle";
}

PJRT_Error* handle_error(const void* handle, Kind wanted, const char* function) {
  const Handle* head = (const Handle*)handle;
  const char* got = head == NULL ? "NULL" : name_of(head->kind);
  if (head != NULL && head->kind == wanted)
    got = atomic_load(&head->owned) == LENT ? "one that belongs to another handle and ends with it"
                                            : name_of(KIND_DEAD);
  return error_new(PJRT_Error_Code_INVALID_ARGUMENT, "PJRT_%s: expected a %s, got %s", function,
                   name_of(wanted), got);
}
