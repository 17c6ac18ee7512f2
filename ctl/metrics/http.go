package metrics

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
)

// maxScrapes bounds concurrent scrapes. Each takes the instance lock, and
// commands must get their turn.
const maxScrapes = 4

// Handler serves /metrics, /healthz and a landing page. Besides the instance,
// it exports the serving process (go_* and process_*), as exporters do. A
// failed scrape is answered with status 500 and logged to errs.
func Handler(g *Gatherer, errs io.Writer) (http.Handler, error) {
	process := prometheus.NewRegistry()
	for _, col := range []prometheus.Collector{
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := process.Register(col); err != nil {
			return nil, fmt.Errorf("registering a collector: %w", err)
		}
	}
	// Not prometheus.Gatherers, which checks and sorts every sample again: our
	// names and the process's do not clash.
	all := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		families, err := g.Gather()
		if err != nil {
			return nil, err
		}
		more, err := process.Gather()
		return append(families, more...), err
	})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", inLargeWrites(promhttp.HandlerFor(all, promhttp.HandlerOpts{
		ErrorLog:            log.New(errs, "", 0),
		ErrorHandling:       promhttp.HTTPErrorOnError,
		MaxRequestsInFlight: maxScrapes,
		// The scraper is usually close, often on this machine: CPU costs more than
		// bandwidth.
		DisableCompression: true,
	})))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, landingPage)
	})
	return mux, nil
}

// answerBuffer is the size of a write to the socket, in bytes. net/http writes
// 4 KB at a time. A thousand ports take two megabytes, and large writes save a
// quarter of the CPU time of their scrape (8 of 39 ms).
const answerBuffer = 64 << 10

func inLargeWrites(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := bufio.NewWriterSize(w, answerBuffer)
		h.ServeHTTP(bufferedAnswer{w, b}, r)
		_ = b.Flush() // an error means that the scraper is gone
	})
}

// bufferedAnswer is a ResponseWriter with a buffered body.
type bufferedAnswer struct {
	http.ResponseWriter
	body *bufio.Writer
}

func (a bufferedAnswer) Write(p []byte) (int, error) { return a.body.Write(p) }

// NewServer wraps a handler with timeouts that suit scrapes: a client that
// sends its request slowly must not hold a connection for ever.
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
