// Threads that wait for arrays.
//
// XLA:CPU computes asynchronously and tells Python of it by one means only: a call that blocks. So
// an execution that is not finished when it returns gets a thread that blocks in it, without the
// GIL, and sets the event afterwards. Programs that finish at once never come here.
#include <unistd.h>

#include "shim.h"

enum { MAX_WAITERS = 64 };  // more executions than that wait in line

typedef struct Job {
  PyObject* waits;
  HostCopy* copy;
  PJRT_Event* event;
  bool copying;  // writes into the framework's memory: too late to give it up
  atomic_bool given_up;
  struct Job* next;           // in line
  struct Job *older, *newer;  // of all that are not finished
} Job;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER, idle = PTHREAD_COND_INITIALIZER;
static Job *first, *last, *newest;
static int waiters, idle_waiters, queued, running;

static PJRT_Error* lost;  // why what waits for others is given up; set once, under `mutex`
static atomic_bool is_lost;

PJRT_Error* lost_error(void) {
  return atomic_load(&is_lost) ? error_copy(lost) : NULL;
}

// Once a job has been given up, its destination is the framework's again.
static bool may_copy(Job* job) {
  pthread_mutex_lock(&mutex);
  job->copying = !job->given_up;
  pthread_mutex_unlock(&mutex);
  return job->copying;
}

// A call that blocks comes back for the GIL five times a second, to look for Ctrl-C; if it is still
// there when the interpreter goes, this ends the process. So what may never come, because another
// process has a part in it, is asked for again and again instead. False if it has been given up.
static atomic_bool has_peers;

void wait_with_peers(void) { atomic_store(&has_peers, true); }

// Also a job that came in line after the others were given up, and waits for the same.
static bool is_given_up(const Job* job) {
  return atomic_load(&job->given_up) || event_is_done(job->event) ||
         (atomic_load(&is_lost) && job->copy != NULL && event_is_done(job->copy->ready) &&
          !event_is_good(job->copy->ready));
}

static bool poll(const Job* job, PyObject* array) {
  useconds_t pause = 50;
  while (atomic_load(&has_peers)) {
    PyObject* ready = call_method(array, IS_READY);
    if (ready == NULL) PyErr_Clear();  // it failed, or it is a token, which can only be waited for
    Py_XDECREF(ready);
    if (ready != Py_False) break;
    if (is_given_up(job)) return false;
    Py_BEGIN_ALLOW_THREADS
    usleep(pause);
    Py_END_ALLOW_THREADS
    if (pause < 2000) pause *= 2;
  }
  return true;
}

static bool is_deleted(PyObject* array) {
  PyObject* answer = call_method(array, IS_DELETED);
  if (answer == NULL) PyErr_Clear();  // a token
  bool deleted = answer == Py_True;
  Py_XDECREF(answer);
  return deleted;
}

static bool says_deleted(PyObject* exception) {
  PyObject* text = exception == NULL ? NULL : PyObject_Str(exception);
  const char* message = text == NULL ? NULL : PyUnicode_AsUTF8AndSize(text, NULL);
  bool says = message != NULL && strstr(message, "deleted or donated") != NULL;
  if (message == NULL) PyErr_Clear();
  Py_XDECREF(text);
  return says;
}

// jaxlib asks the first of several shards alone whether an array is deleted. A new reference to the
// list of its shards, or NULL if there is but one, or none any more.
static PyObject* several_shards(PyObject* array) {
  PyObject* shards = PyObject_GetAttrString(array, "_arrays");
  if (shards == NULL) PyErr_Clear();  // a token
  if (shards != NULL && PyList_Check(shards) && PyList_Size(shards) > 1) return shards;
  Py_XDECREF(shards);
  return NULL;
}

// With the GIL. False with an exception set if the array failed. One that has been donated
// meanwhile, or a shard of it, did not: the other shards are as good as before. And one may look
// donated for a moment: while a program takes its arguments over, and puts them back because
// another one does not fit.
bool wait_for_array(PyObject* array) {
  enum { ATTEMPTS = 1000 };
  for (int attempt = 0;; attempt++) {
    PyObject* result = call_method(array, BLOCK_UNTIL_READY);
    Py_XDECREF(result);
    if (result != NULL) return true;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    bool gone = is_deleted(array);
    bool again = !gone && attempt < ATTEMPTS && says_deleted(value);
    PyObject* shards = again ? several_shards(array) : NULL;
    if (!gone && !again) {
      PyErr_Restore(type, value, traceback);
      return false;
    }
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    if (gone) return true;
    if (shards != NULL) {
      bool good = true;
      for (Py_ssize_t i = 0; good && i < PyList_Size(shards); i++)
        good = wait_for_array(PyList_GetItem(shards, i));
      Py_DECREF(shards);
      return good;
    }
    Py_BEGIN_ALLOW_THREADS
    usleep(100);
    Py_END_ALLOW_THREADS
  }
}

// With the GIL. The error of the first array that failed, or of the copy.
static PJRT_Error* run(Job* job) {
  Py_ssize_t n = job->waits == NULL ? 0 : PyList_Size(job->waits);
  bool failed = false;
  for (Py_ssize_t i = 0; i < n && !failed; i++) {
    // What it waits for stays alive for ever: its destructor might wait too.
    if (!poll(job, PyList_GetItem(job->waits, i))) return lost_error();
    failed = !wait_for_array(PyList_GetItem(job->waits, i));
  }
  PJRT_Error* error = failed ? error_from_python() : NULL;
  if (!failed && job->copy != NULL && may_copy(job)) error = host_copy_run(job->copy);
  host_copy_free(job->copy);
  Py_XDECREF(job->waits);
  return error;
}

static void finish(Job* job, PJRT_Error* error) {  // without the GIL: callbacks may take it
  pthread_mutex_lock(&mutex);
  if (job->newer == NULL) newest = job->older;
  else job->newer->older = job->older;
  if (job->older != NULL) job->older->newer = job->newer;
  pthread_mutex_unlock(&mutex);
  event_set(job->event, error);
  event_release(job->event);
  free(job);
}

static void* waiter(void* unused) {
  (void)unused;
  pthread_mutex_lock(&mutex);
  for (;;) {
    while (first == NULL) {
      idle_waiters++;
      pthread_cond_wait(&work, &mutex);
      idle_waiters--;
    }
    Job* job = first;
    first = job->next;
    if (first == NULL) last = NULL;
    queued--;
    running++;
    pthread_mutex_unlock(&mutex);
    // Not enter(): the gate waits for these very threads (wait_for_all) before it shuts.
    PyGILState_STATE gil = PyGILState_Ensure();
    PJRT_Error* error = run(job);
    PyGILState_Release(gil);
    finish(job, error);
    pthread_mutex_lock(&mutex);
    if (--running == 0 && queued == 0) pthread_cond_broadcast(&idle);
  }
  return NULL;
}

static bool start_waiter(void) {
  pthread_t thread;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  int failed = pthread_create(&thread, &attributes, waiter, NULL);
  pthread_attr_destroy(&attributes);
  return failed == 0;
}

void wait_then_set(PyObject* waits, HostCopy* copy, PJRT_Event* event) {
  Job* job = malloc(sizeof(Job));
  Job here;
  bool inline_ = job == NULL || python_is_closed();
  if (!inline_) {
    *job = (Job){.waits = waits, .copy = copy, .event = event};
    pthread_mutex_lock(&mutex);
    if (idle_waiters <= queued && waiters < MAX_WAITERS && start_waiter()) waiters++;
    inline_ = waiters == 0;
    if (!inline_) {
      if (last == NULL) first = job;
      else last->next = job;
      last = job;
      job->older = newest;
      if (newest != NULL) newest->newer = job;
      newest = job;
      queued++;
      pthread_cond_signal(&work);
    }
    pthread_mutex_unlock(&mutex);
  }
  if (!inline_) return;
  free(job);
  here = (Job){.waits = waits, .copy = copy, .event = event};
  PJRT_Error* error = run(&here);
  Py_BEGIN_ALLOW_THREADS
  event_set(event, error);
  event_release(event);
  Py_END_ALLOW_THREADS
}

// ---- Giving up -------------------------------------------------------------------------------

// Without the GIL: the framework's callbacks run here.
void give_up_waiting(PJRT_Error* error) {
  pthread_mutex_lock(&mutex);
  if (lost == NULL) lost = error;
  else error_free(error);
  atomic_store(&is_lost, true);
  pthread_cond_broadcast(&idle);
  size_t n = 0, count = 0;
  for (Job* job = newest; job != NULL; job = job->older) n++;
  PJRT_Event** events = calloc(n + 1, sizeof(PJRT_Event*));
  for (Job* job = newest; events != NULL && job != NULL; job = job->older) {
    if (job->copying || job->given_up) continue;
    job->given_up = true;
    events[count++] = event_keep(job->event);
  }
  pthread_mutex_unlock(&mutex);
  for (size_t i = 0; i < count; i++) {
    event_set(events[i], error_copy(lost));
    event_release(events[i]);
  }
  free(events);
}

void wait_for_all(void) {
  Py_BEGIN_ALLOW_THREADS
  pthread_mutex_lock(&mutex);
  while ((queued > 0 || running > 0) && !atomic_load(&is_lost)) pthread_cond_wait(&idle, &mutex);
  // Given up: some fail yet, soon, and must not come back to an interpreter that is gone; those that
  // are still there when nothing has changed for a while will not.
  int before = -1;
  while (queued + running > 0 && queued + running != before) {
    before = queued + running;
    pthread_mutex_unlock(&mutex);
    usleep(500 * 1000);
    pthread_mutex_lock(&mutex);
  }
  pthread_mutex_unlock(&mutex);
  Py_END_ALLOW_THREADS
}

// ---- Copies to the host ----------------------------------------------------------------------

PJRT_Error* host_copy_run(HostCopy* copy) {
  PyObject* order = copy->minor_to_major == NULL ? Py_NewRef(Py_None)
                                                 : int64_tuple(copy->minor_to_major, copy->rank);
  PyObject* data = order == NULL ? NULL
      : PyObject_CallMethod(copy->client->object, "to_host", "OiO", copy->array, copy->index, order);
  Py_XDECREF(order);
  Py_buffer view;
  if (data == NULL || PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) != 0) {
    Py_XDECREF(data);
    return error_from_python();
  }
  PJRT_Error* error = NULL;
  if ((size_t)view.len > copy->size) {
    error = error_new(PJRT_Error_Code_INVALID_ARGUMENT,
                      "PJRT_Buffer_ToHostBuffer: the array has %zu bytes, the destination %zu",
                      (size_t)view.len, copy->size);
  } else {
    Py_BEGIN_ALLOW_THREADS
    memcpy(copy->destination, view.buf, (size_t)view.len);
    Py_END_ALLOW_THREADS
  }
  PyBuffer_Release(&view);
  Py_DECREF(data);
  return error;
}

void host_copy_free(HostCopy* copy) {
  if (copy == NULL) return;
  Py_XDECREF(copy->array);
  event_release(copy->ready);
  free(copy->minor_to_major);
  free(copy);
}
