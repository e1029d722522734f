// Shards: the Python array behind one or more buffers, and the event of it being ready.
#include "shim.h"

Shards* shards_new(PyObject* array, int num_shards, PJRT_Event* ready) {
  Shards* shards = malloc(sizeof(Shards));
  if (shards == NULL) {
    Py_DECREF(array);
    event_release(ready);
    return NULL;
  }
  *shards = (Shards){1, num_shards, array, ready, {NULL, shards, NULL}};
  return shards;
}

// shards_ready() reads without the GIL, while another thread may delete the buffer or put its array
// together with others; nothing is freed while it reads.
static pthread_mutex_t reading = PTHREAD_MUTEX_INITIALIZER;

void shards_release(Shards* shards) {
  if (atomic_fetch_sub(&shards->references, 1) > 1) return;
  pthread_mutex_lock(&reading);
  pthread_mutex_unlock(&reading);
  Py_DECREF(shards->array);
  event_release(shards->ready);
  free(shards);
}

// Whether an array is ready: 1, 0, or -1 with an exception set if it never will be. An array whose
// computation failed calls itself ready; only block_until_ready() tells.
static int is_ready(PyObject* array, bool may_fail) {
  PyObject* answer = call_method(array, IS_READY);
  if (answer == NULL) return -1;
  bool ready = answer == Py_True;
  Py_DECREF(answer);
  if (!ready || !may_fail) return ready;
  return wait_for_array(array) ? 1 : -1;
}

PJRT_Event* completion_of(PyObject* arrays, PyObject* extra, bool may_fail) {
  Py_ssize_t n = PyList_Size(arrays);
  int ready = extra == NULL || extra == Py_None;
  for (Py_ssize_t i = 0; ready == 1 && i < n; i++) 
    ready = is_ready(PyList_GetItem(arrays, i), may_fail);
  if (ready == 1) return event_ready();
  PJRT_Event* event = event_new();
  if (event == NULL) {
    PyErr_NoMemory();
    return NULL;
  }
  handle_set_owned(event, 0);
  if (ready == -1) {  // the arrays exist and carry the error, as if it had come later
    event_set(event, error_from_python());
    return event;
  }
  // A list of its own: the caller's may change, and `extra` is what the outputs do not tell.
  PyObject* waits = PyList_GetSlice(arrays, 0, n);
  if (waits == NULL || (extra != NULL && extra != Py_None && PyList_Append(waits, extra) != 0)) {
    Py_XDECREF(waits);
    event_release(event);
    return NULL;
  }
  wait_then_set(waits, NULL, event_keep(event));
  return event;
}

PJRT_Event* shards_ready(_Atomic(Shards*)* place) {
  pthread_mutex_lock(&reading);
  Shards* shards = atomic_load(place);
  PJRT_Event* event = shards == NULL ? NULL : event_hand_out(shards->ready);
  pthread_mutex_unlock(&reading);
  return event;
}
