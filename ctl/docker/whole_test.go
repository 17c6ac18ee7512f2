package docker

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// endless is a body without end. It counts the bytes read from it.
type endless struct{ read int64 }

func (e *endless) Read(p []byte) (int, error) {
	e.read += int64(len(p))
	return len(p), nil
}

// TestLongBodiesAreRefused: without reading if the length is announced,
// otherwise at the limit.
func TestLongBodiesAreRefused(t *testing.T) {
	for _, c := range []struct{ announced, most int64 }{{70 << 20, 0}, {-1, bodyLimit + 1<<20}} {
		body := &endless{}
		q := httptest.NewRequest(http.MethodPost, "/NetworkDriver.CreateNetwork", body)
		q.ContentLength = c.announced
		w := httptest.NewRecorder()
		r := &recorder{}
		newHandler(driver{r}, t.Logf).ServeHTTP(w, q)
		if w.Code != http.StatusRequestEntityTooLarge || !strings.Contains(w.Body.String(), "longer than") || len(r.did) != 0 {
			t.Errorf("length %d: %d %s, did %v", c.announced, w.Code, w.Body, r.did)
		}
		if body.read > c.most {
			t.Errorf("length %d: %d bytes were read, want at most %d", c.announced, body.read, c.most)
		}
	}
}

// TestSlowBodiesEnd: they time out, but the call itself may take longer.
func TestSlowBodiesEnd(t *testing.T) {
	const patience = 100 * time.Millisecond
	cancelled := make(chan bool, 1)
	srv := httptest.NewServer(whole(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
			cancelled <- true
		case <-time.After(5 * patience):
			cancelled <- false
		}
	}), patience))
	defer srv.Close()
	slow, end := io.Pipe()
	defer func() { _ = end.Close() }()
	a, err := srv.Client().Post(srv.URL, "", slow)
	if err != nil {
		t.Fatal(err)
	}
	_ = a.Body.Close()
	if a.StatusCode != http.StatusRequestTimeout {
		t.Errorf("a body that never comes: %s", a.Status)
	}
	if a, err = srv.Client().Post(srv.URL, "", strings.NewReader("{}")); err != nil {
		t.Fatal(err)
	}
	_ = a.Body.Close()
	if <-cancelled || a.StatusCode != http.StatusOK {
		t.Errorf("a call that takes long was cancelled: %s", a.Status)
	}
}
