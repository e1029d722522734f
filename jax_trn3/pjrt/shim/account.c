// What lives in a memory: counted when a buffer is made and when it is deleted, and held against the
// memory's size. The limit is the simulated chip's: the host may well have room for more.
#include <stdio.h>

#include "shim.h"

// Buffers of at least this part of a memory are kept in a list, so that an error can name the
// largest; the others are too small to be the reason.
enum { PARTS = 1024 };

static pthread_mutex_t lists = PTHREAD_MUTEX_INITIALIZER;

static bool is_large(const PJRT_Buffer* buffer) {
  return buffer->memory->bytes_limit > 0 && buffer->bytes >= buffer->memory->bytes_limit / PARTS;
}

static void raise_to(atomic_llong* maximum, long long value) {
  long long old = atomic_load(maximum);
  while (old < value && !atomic_compare_exchange_weak(maximum, &old, value)) {}
}

void account_open(PJRT_Buffer* buffer) {
  PJRT_Memory* memory = buffer->memory;
  int64_t bytes = buffer->bytes;
  raise_to(&memory->peak_bytes_in_use, atomic_fetch_add(&memory->bytes_in_use, bytes) + bytes);
  raise_to(&memory->largest_alloc_size, bytes);
  atomic_fetch_add(&memory->num_allocs, 1);
  if (!is_large(buffer)) return;
  pthread_mutex_lock(&lists);
  buffer->larger_after = memory->large;
  if (memory->large != NULL) memory->large->larger_before = buffer;
  memory->large = buffer;
  pthread_mutex_unlock(&lists);
}

void account_close(PJRT_Buffer* buffer) {
  atomic_fetch_sub(&buffer->memory->bytes_in_use, buffer->bytes);
  if (!is_large(buffer)) return;
  pthread_mutex_lock(&lists);
  if (buffer->larger_before == NULL) buffer->memory->large = buffer->larger_after;
  else buffer->larger_before->larger_after = buffer->larger_after;
  if (buffer->larger_after != NULL) buffer->larger_after->larger_before = buffer->larger_before;
  pthread_mutex_unlock(&lists);
}

void account_peak(PJRT_Memory* memory, int64_t temporaries) {
  raise_to(&memory->peak_bytes_in_use, atomic_load(&memory->bytes_in_use) + temporaries);
}

static const char* readable(int64_t bytes, char* text, size_t size) {
  static const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = (double)bytes;
  int unit = 0;
  for (; value >= 1024 && unit < 6; unit++) value /= 1024;
  snprintf(text, size, unit == 0 ? "%.0f %s" : "%.2f %s", value, units[unit]);
  return text;
}

// ---- The host's own memory -------------------------------------------------------------------

// A number of bytes in a file of the kernel's: after `key`, in units of `unit`; or -1.
static int64_t read_number(const char* path, const char* key, int64_t unit) {
  char text[4096];
  FILE* file = fopen(path, "r");
  if (file == NULL) return -1;
  size_t size = fread(text, 1, sizeof(text) - 1, file);
  fclose(file);
  text[size] = 0;
  const char* at = strstr(text, key);
  long long value = -1;
  return at != NULL && sscanf(at + strlen(key), "%lld", &value) == 1 ? value * unit : -1;
}

static int64_t least(int64_t a, int64_t b) { return a < 0 ? b : b < 0 || a < b ? a : b; }

// What this process could still allocate, or -1 if the kernel does not say. `promised`: what it has
// been given, but may not have touched yet, so that the kernel does not know.
static int64_t host_room(int64_t promised) {
  int64_t total = read_number("/proc/meminfo", "MemTotal:", 1024);
  int64_t room = read_number("/proc/meminfo", "MemAvailable:", 1024);
  int64_t limit = read_number("/sys/fs/cgroup/memory.max", "", 1);  // "max" is no number
  int64_t used = read_number("/sys/fs/cgroup/memory.current", "", 1);
  if (limit >= 0 && used >= 0) room = least(room, limit - used);
  total = least(total, limit);
  if (total >= 0) room = least(room, promised < total ? total - promised : 0);
  return room;
}

static int64_t promised_by(const PJRT_Client* client) {
  int64_t bytes = 0;
  for (size_t i = 0; i < client->num_memories; i++)
    bytes += atomic_load(&client->memories[i]->bytes_in_use);
  return bytes;
}

PJRT_Error* account_check_host(const PJRT_Client* client, int64_t bytes, const char* who) {
  enum { WORTH_A_LOOK = 1 << 30 };
  int64_t room = bytes < WORTH_A_LOOK ? -1 : host_room(promised_by(client));
  if (room < 0 || bytes <= room) return NULL;
  char wanted[32], have[32];
  return error_new(PJRT_Error_Code_RESOURCE_EXHAUSTED,
                   "Out of memory on the host: %s needs %s on the simulated devices, whose memory "
                   "is this machine's, and %s are available. (It would fit the devices.) To "
                   "know what it costs there, compile it without running it.",
                   who, readable(bytes, wanted, sizeof(wanted)), readable(room, have, sizeof(have)));
}

// ---- The limit -------------------------------------------------------------------------------

static void describe_largest(const PJRT_Memory* memory, char* text, size_t size) {
  char shape[256], bytes[32];
  text[0] = 0;
  pthread_mutex_lock(&lists);
  const PJRT_Buffer* largest = memory->large;
  int same = 0;
  for (const PJRT_Buffer* b = memory->large; b != NULL; b = b->larger_after) {
    same = b->bytes == largest->bytes ? same + 1 : b->bytes > largest->bytes ? 1 : same;
    if (b->bytes > largest->bytes) largest = b;
  }
  if (largest != NULL)
    snprintf(text, size, " The largest live array is %s with %s%s.",
             shape_text(largest->type, largest->dims, largest->rank, shape, sizeof(shape)),
             readable(largest->bytes, bytes, sizeof(bytes)), same > 1 ? ", and not the only one" : "");
  pthread_mutex_unlock(&lists);
}

PJRT_Error* account_check(const PJRT_Memory* memory, int64_t bytes, int64_t freed, const char* who) {
  if (memory->bytes_limit == 0) return NULL;
  int64_t used = atomic_load(&memory->bytes_in_use);
  if (bytes - freed <= memory->bytes_limit - used) return NULL;
  char largest[400], wanted[32], in_use[32], limit[32];
  describe_largest(memory, largest, sizeof(largest));
  return error_new(PJRT_Error_Code_RESOURCE_EXHAUSTED,
                   "Out of memory: %s needs %s in the %s memory of %s, which has %s, of which %s are "
                   "in use.%s Shard over more devices, delete or donate arrays that are no longer "
                   "needed, or keep them in pinned_host memory.",
                   who, readable(bytes, wanted, sizeof(wanted)), memory->kind,
                   memory->device->description->to_string,
                   readable(memory->bytes_limit, limit, sizeof(limit)),
                   readable(used, in_use, sizeof(in_use)), largest);
}
