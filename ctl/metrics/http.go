package metrics

import (
	"fmt"
	"io"
	"net/http"
	"time"
)

// maxScrapes is how many scrapes may run at a time; each takes the instance
// lock, and commands must get their turn.
const maxScrapes = 4

// Handler serves /metrics, /healthz and a landing page. Besides the instance it
// shows the serving process itself (go_* and process_*), as exporters do.
// Failed scrapes are answered with 500 and noted on errs.
func Handler(c *Collector, errs io.Writer) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", &scrapes{collector: c, errs: errs, started: time.Now(), running: make(chan struct{}, maxScrapes)})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, landingPage)
	})
	return mux
}

// scrapes answers them.
type scrapes struct {
	collector *Collector
	errs      io.Writer
	started   time.Time
	running   chan struct{} // holds one for each that is under way
}

func (s *scrapes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case s.running <- struct{}{}:
		defer func() { <-s.running }()
	default:
		http.Error(w, fmt.Sprintf("%d scrapes are under way already", maxScrapes), http.StatusServiceUnavailable)
		return
	}
	snap, err := s.collector.snapshot(r.Context())
	if err != nil {
		fmt.Fprintln(s.errs, err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	e := newExposition(w)
	s.collector.show(e, snap)
	showProcess(e, s.started)
	_ = e.flush() // whoever asked has gone
}

// NewServer wraps a handler with timeouts that suit scrapes: a client that
// dribbles its request must not hold a connection for ever.
func NewServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
	}
}

const landingPage = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>fastbr</title></head>
<body><h1>fastbr</h1>
<p>Container bridge with an eBPF datapath.</p>
<ul><li><a href="/metrics">Metrics</a></li><li><a href="/healthz">Health</a></li></ul>
</body></html>
`
