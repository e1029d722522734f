// How many programs with collectives may be in flight at once; see Client.flight_limit in api.py.
//
// In C, because an interrupt must not come between a place and its program: Python code in the main
// thread can be interrupted at any point.
#include <unistd.h>

#include "shim.h"

// With the GIL. Waits until there is room: for the oldest program, or for another thread that is
// starting one. The oldest is not counted meanwhile; it may start others, from a host callback.
bool flight_begin(PJRT_Client* client) {
  if (client->flights == NULL) {
    client->flights = calloc((size_t)client->flight_limit + 1, sizeof(PJRT_Event*));
    if (client->flights == NULL) return PyErr_NoMemory() != NULL;
  }
  while (client->starting + client->num_flights >= client->flight_limit) {
    PJRT_Event* oldest = NULL;
    if (client->num_flights > 0) {
      oldest = client->flights[0];
      client->num_flights--;
      memmove(client->flights, client->flights + 1,
              (size_t)client->num_flights * sizeof(PJRT_Event*));
    }
    Py_BEGIN_ALLOW_THREADS
    if (oldest == NULL) usleep(100);
    else error_free(event_wait(oldest));  // whoever asks for its outputs will be told
    event_release(oldest);
    Py_END_ALLOW_THREADS
  }
  client->starting++;
  return true;
}

void flight_started(PJRT_Client* client, PJRT_Event* landed) {
  client->starting--;
  if (landed != NULL) client->flights[client->num_flights++] = event_keep(landed);
}

void flights_free(PJRT_Client* client) {
  for (int i = 0; i < client->num_flights; i++) event_release(client->flights[i]);
  free(client->flights);
}
