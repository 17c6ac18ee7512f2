// Package docker is fastbr's network driver for Docker. It translates the
// remote driver protocol (HTTP and JSON on a socket) into operations of ctl. It
// holds no state: ctl does, so dockerd and the driver may restart in any order.
//
// ctl knows networks and endpoints by the first twelve digits of their Docker
// ids.
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
	// answerLimit bounds a call: dockerd waits without limit, so a driver that
	// hangs would hang it. Even an overloaded host answers in this time, although
	// loading the programs can take many seconds there.
	answerLimit = time.Minute
	// bodyLimit, in bytes, exceeds what a container needs that publishes all
	// ports of both protocols and address families.
	bodyLimit = 32 << 20
	// headerLimit and bodyPatience bound the wait for the rest of a request.
	// Between requests dockerd keeps its connections open for as long as it
	// likes.
	headerLimit  = 5 * time.Second
	bodyPatience = 10 * time.Second
)

// errRequest marks a request that dockerd should not have sent.
var errRequest = errors.New("bad request")

// NewServer returns an HTTP server that answers dockerd. note is called for
// each failed call.
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
		"EndpointOperInfo":            fixed(operInfoResponse{map[string]any{}}), // called by every inspect
		"DeleteEndpoint":              call(note, d.deleteEndpoint),
		"Join":                        call(note, d.join),
		"Leave":                       call(note, d.leave),
		"ProgramExternalConnectivity": call(note, d.program),
		"RevokeExternalConnectivity":  call(note, d.leaveGateway),
		// For swarm and other hosts: a local driver has nothing to do.
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

// whole reads the body, in bounded time and memory, before it calls h. It
// refuses a body that is announced as too long without reading it. The server's
// ReadTimeout would not do: it would end the calls, too.
func whole(h http.Handler, patience time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > bodyLimit {
			tooLong(w)
			return
		}
		c := http.NewResponseController(w)
		_ = c.SetReadDeadline(time.Now().Add(patience)) // a test's recorder has no deadline
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

// reply always sends a body: dockerd takes an empty one for an error.
func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/vnd.docker.plugins.v1.2+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // an error means that dockerd has hung up
}

// fixed gives the same answer to every request.
func fixed(v any) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, v) })
}

// call decodes a request, calls do and sends the answer. When dockerd repeats a
// request, the body may be lost: call refuses an empty body instead of reading
// it as zeros.
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

// shortID returns the name by which ctl knows a network or an endpoint. The
// error wraps errRequest if id is not a Docker id.
func shortID(what, id string) (string, error) {
	if !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(id) {
		return "", fmt.Errorf("%w: %s %q: want 64 hex digits", errRequest, what, id)
	}
	return id[:12], nil
}
