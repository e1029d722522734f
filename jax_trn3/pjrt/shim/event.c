// PJRT_Event: something that becomes ready once, with or without an error.
#include <time.h>

#include "shim.h"

typedef struct Callback {
  PJRT_Event_OnReadyCallback function;
  void* argument;
  struct Callback* next;
} Callback;

struct PJRT_Event {
  Handle head;
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  atomic_bool done;
  bool is_callers;  // made by PJRT_Event_Create, to be set by PJRT_Event_Set
  PJRT_Error* error;
  Callback* callbacks;
};

static PJRT_Event always_ready = {
    .head = {NULL, KIND_EVENT, 1, LENT}, .mutex = PTHREAD_MUTEX_INITIALIZER,
    .changed = PTHREAD_COND_INITIALIZER, .done = true};

PJRT_Event* event_ready(void) { return &always_ready; }

PJRT_Event* event_new(void) {
  PJRT_Event* event = handle_new(KIND_EVENT, sizeof(PJRT_Event));
  if (event == NULL) return NULL;
  pthread_mutex_init(&event->mutex, NULL);
  pthread_cond_init(&event->changed, NULL);
  return event;
}

PJRT_Event* event_keep(PJRT_Event* event) {
  if (event != &always_ready) atomic_fetch_add(&event->head.references, 1);
  return event;
}

PJRT_Event* event_hand_out(PJRT_Event* event) {
  if (event != &always_ready) handle_hand_out(event);
  return event;
}

void event_release(PJRT_Event* event) {
  if (event == NULL || event == &always_ready || !handle_release(event)) return;
  error_free(event->error);
  while (event->callbacks != NULL) {  // only of an event that nobody will ever set
    Callback* next = event->callbacks->next;
    free(event->callbacks);
    event->callbacks = next;
  }
  pthread_cond_destroy(&event->changed);
  pthread_mutex_destroy(&event->mutex);
  handle_free(event);
}

bool event_is_done(PJRT_Event* event) { return atomic_load(&event->done); }

bool event_is_good(PJRT_Event* event) { return event_is_done(event) && event->error == NULL; }

PJRT_Error* event_error(PJRT_Event* event) {
  return event_is_done(event) ? error_copy(event->error) : NULL;
}

void event_set(PJRT_Event* event, PJRT_Error* error) {
  pthread_mutex_lock(&event->mutex);
  if (event->done) {  // the first one counts
    pthread_mutex_unlock(&event->mutex);
    error_free(error);
    return;
  }
  event->error = error;
  atomic_store(&event->done, true);
  Callback* callbacks = event->callbacks;
  event->callbacks = NULL;
  pthread_cond_broadcast(&event->changed);
  pthread_mutex_unlock(&event->mutex);
  Callback* in_order = NULL;  // they were pushed, so the list is backwards
  while (callbacks != NULL) {
    Callback* next = callbacks->next;
    callbacks->next = in_order;
    in_order = callbacks;
    callbacks = next;
  }
  while (in_order != NULL) {
    Callback* next = in_order->next;
    in_order->function(error_copy(error), in_order->argument);
    free(in_order);
    in_order = next;
  }
}

PJRT_Error* event_wait(PJRT_Event* event) {
  pthread_mutex_lock(&event->mutex);
  while (!event->done) pthread_cond_wait(&event->changed, &event->mutex);
  pthread_mutex_unlock(&event->mutex);
  return event_error(event);
}

PJRT_Error* event_wait_for_python(PJRT_Event* event) {
  while (!event_is_done(event)) {
    Py_BEGIN_ALLOW_THREADS
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 100 * 1000 * 1000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&event->mutex);
    if (!event->done) pthread_cond_timedwait(&event->changed, &event->mutex, &until);
    pthread_mutex_unlock(&event->mutex);
    Py_END_ALLOW_THREADS
    if (PyErr_CheckSignals() != 0) return error_from_python();
  }
  return event_error(event);
}

FUNCTION(Event_Destroy, event) {
  if (args->event == &always_ready) return NULL;
  TAKE_BACK(args->event, KIND_EVENT);
  event_release(args->event);
  return NULL;
}

FUNCTION(Event_IsReady, is_ready) {
  NEED(args->event, KIND_EVENT);
  args->is_ready = event_is_done(args->event);
  return NULL;
}

FUNCTION(Event_Error, event) {
  NEED(args->event, KIND_EVENT);
  if (!event_is_done(args->event))
    return error_new(PJRT_Error_Code_FAILED_PRECONDITION,
                     "PJRT_Event_Error: the event is not ready yet");
  return event_error(args->event);
}

FUNCTION(Event_Await, event) {
  NEED(args->event, KIND_EVENT);
  return event_wait(args->event);
}

FUNCTION(Event_OnReady, user_arg) {
  NEED(args->event, KIND_EVENT);
  if (args->callback == NULL)
    return error_new(PJRT_Error_Code_INVALID_ARGUMENT, "PJRT_Event_OnReady: no callback");
  PJRT_Event* event = args->event;
  if (!event_is_done(event)) {
    Callback* callback = malloc(sizeof(Callback));
    if (callback == NULL) return error_no_memory();
    pthread_mutex_lock(&event->mutex);
    if (!event->done) {
      *callback = (Callback){args->callback, args->user_arg, event->callbacks};
      event->callbacks = callback;
      pthread_mutex_unlock(&event->mutex);
      return NULL;
    }
    pthread_mutex_unlock(&event->mutex);
    free(callback);
  }
  args->callback(event_error(event), args->user_arg);
  return NULL;
}

FUNCTION(Event_Create, event) {
  args->event = event_new();
  if (args->event == NULL) return error_no_memory();
  args->event->is_callers = true;
  return NULL;
}

FUNCTION(Event_Set, error_message_size) {
  NEED(args->event, KIND_EVENT);
  if (!args->event->is_callers)
    return error_new(PJRT_Error_Code_FAILED_PRECONDITION,
                     "PJRT_Event_Set: the event is the device's to set");
  if (event_is_done(args->event))
    return error_new(PJRT_Error_Code_FAILED_PRECONDITION, "PJRT_Event_Set: the event is set already");
  PJRT_Error* error = NULL;
  if (args->error_code != PJRT_Error_Code_OK) {
    if (args->error_code < 0 || args->error_code > PJRT_Error_Code_UNAUTHENTICATED ||
        (args->error_message == NULL && args->error_message_size > 0))
      return error_new(PJRT_Error_Code_INVALID_ARGUMENT,
                       "PJRT_Event_Set: expected a code from 0 to %d and its message, got %d%s",
                       PJRT_Error_Code_UNAUTHENTICATED, (int)args->error_code,
                       args->error_message == NULL ? " and NULL" : "");
    error = error_of(args->error_code, args->error_message, args->error_message_size);
  }
  PJRT_Event* event = event_keep(args->event);  // a callback may destroy it
  event_set(event, error);
  event_release(event);
  return NULL;
}
