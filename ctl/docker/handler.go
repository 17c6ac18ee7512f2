// Package docker is fastbr's network driver for Docker: the remote driver
// protocol (HTTP and JSON on a socket), translated into the verbs of ctl. It
// keeps no state: everything is in ctl's, so that dockerd and this driver may
// restart in any order.
//
// Networks and endpoints are known to ctl by the first twelve digits of
// Docker's ids.
package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"
)

const (
	// answerLimit bounds a call: dockerd itself waits for ever, and a driver that
	// hangs would hang it. A host that is merely overloaded has answered by then,
	// though loading the programs there takes many seconds.
	answerLimit = time.Minute
	// bodyLimit is above what a container needs that has all ports published, of
	// both protocols and address families.
	bodyLimit = 32 << 20
	// headerLimit and bodyPatience bound the wait for a request that has begun.
	// Between requests dockerd keeps its connections for as long as it likes.
	headerLimit  = 5 * time.Second
	bodyPatience = 10 * time.Second
)

// errRequest marks what dockerd should not have sent.
var errRequest = errors.New("bad request")

// NewServer returns an HTTP server that answers dockerd. note tells the user of
// calls that failed.
func NewServer(core Core, note func(format string, args ...any)) *http.Server {
	return &http.Server{Handler: newHandler(driver{core}, note), ReadHeaderTimeout: headerLimit, IdleTimeout: -1}
}

func newHandler(d driver, note func(string, ...any)) http.Handler {
	mux := http.NewServeMux()
	handle := func(path string, h http.Handler) { mux.Handle("POST "+path, h) }
	handle("/Plugin.Activate", fixed(activateResponse{[]string{"NetworkDriver"}}))
	calls := map[string]http.Handler{
		"GetCapabilities":             fixed(capabilitiesResponse{Scope: "local", ConnectivityScope: "local", GwAllocChecker: true}),
		"GwAllocCheck":                fixed(gwAllocResponse{}), // a bridge always has an address of its own
		"CreateNetwork":               call(note, d.createNetwork),
		"DeleteNetwork":               call(note, d.deleteNetwork),
		"CreateEndpoint":              call(note, d.createEndpoint),
		"EndpointOperInfo":            fixed(operInfoResponse{map[string]any{}}), // called at every inspect
		"DeleteEndpoint":              call(note, d.deleteEndpoint),
		"Join":                        call(note, d.join),
		"Leave":                       call(note, d.leave),
		"ProgramExternalConnectivity": call(note, d.program),
		"RevokeExternalConnectivity":  call(note, d.leaveGateway),
		// Of other hosts, and for swarm: nothing to do for a local driver.
		"DiscoverNew":     fixed(struct{}{}),
		"DiscoverDelete":  fixed(struct{}{}),
		"AllocateNetwork": fixed(struct{}{}),
		"FreeNetwork":     fixed(struct{}{}),
	}
	for name, h := range calls {
		handle("/NetworkDriver."+name, h)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusNotFound, errorResponse{"no such call: " + r.Method + " " + r.URL.Path})
	})
	late, _ := json.Marshal(errorResponse{fmt.Sprintf("fastbr has no answer after %s", answerLimit)})
	return whole(http.TimeoutHandler(mux, answerLimit, string(late)), bodyPatience)
}

// whole lets h see only requests that are there in full, in bounded time and
// memory. One that says that it is too long is refused unread. It is no matter of
// the server's ReadTimeout, which would end the calls themselves.
func whole(h http.Handler, patience time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > bodyLimit {
			tooLong(w)
			return
		}
		c := http.NewResponseController(w)
		_ = c.SetReadDeadline(time.Now().Add(patience)) // a test's recorder has none
		var body bytes.Buffer
		if r.ContentLength > 0 {
			body.Grow(int(r.ContentLength) + bytes.MinRead)
		}
		_, err := body.ReadFrom(http.MaxBytesReader(w, r.Body, bodyLimit))
		_ = c.SetReadDeadline(time.Time{})
		var long *http.MaxBytesError
		switch {
		case errors.As(err, &long):
			tooLong(w)
			return
		case err != nil:
			reply(w, http.StatusRequestTimeout, errorResponse{fmt.Sprintf("%v: the body: %v", errRequest, err)})
			return
		}
		r.Body = io.NopCloser(&body)
		h.ServeHTTP(w, r)
	})
}

func tooLong(w http.ResponseWriter) {
	w.Header().Set("Connection", "close")
	reply(w, http.StatusRequestEntityTooLarge, errorResponse{fmt.Sprintf("%v: the body is longer than %d MiB", errRequest, bodyLimit>>20)})
}

// reply always has a body: dockerd takes an empty one for an error.
func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/vnd.docker.plugins.v1.2+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // dockerd has hung up: nobody to tell
}

// fixed answers always the same, whatever is asked.
func fixed(v any) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, v) })
}

// call decodes a request, has it done and answers. A repeated request of
// dockerd's may have lost its body, which is refused instead of read as zeros.
func call[Q any](note func(string, ...any), do func(context.Context, Q) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q Q
		var v any
		err := json.NewDecoder(r.Body).Decode(&q)
		switch {
		case errors.Is(err, io.EOF):
			err = fmt.Errorf("%w: the body is empty", errRequest)
		case err != nil:
			err = fmt.Errorf("%w: %w", errRequest, err)
		default:
			v, err = do(r.Context(), q)
		}
		switch {
		case err == nil && v == nil:
			reply(w, http.StatusOK, struct{}{})
		case err == nil:
			reply(w, http.StatusOK, v)
		default:
			status := http.StatusInternalServerError
			if errors.Is(err, errRequest) {
				status = http.StatusBadRequest
			}
			text := strings.ReplaceAll(err.Error(), "\n", "; ")
			note("docker: %s: %s", strings.TrimPrefix(r.URL.Path, "/NetworkDriver."), text)
			reply(w, status, errorResponse{text})
		}
	})
}

// shortID is what ctl knows a network or an endpoint by. Returns an error
// wrapping errRequest for anything that is not an id of Docker's.
func shortID(what, id string) (string, error) {
	if !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(id) {
		return "", fmt.Errorf("%w: %s %q: 64 hex digits are wanted", errRequest, what, id)
	}
	return id[:12], nil
}
