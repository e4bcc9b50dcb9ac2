package readme

import (
	"net"
	"regexp"
	"testing"
	"time"

	"github.com/arpc-go/arpc/extension/pubsub"
	"github.com/arpc-go/arpc/log"
)

func onTopic(topic *pubsub.Topic) {
	log.Info("[OnTopic] [%v] \"%v\", [%v]",
		topic.Name,
		string(topic.Data),
		time.Unix(topic.Timestamp/1000000000, topic.Timestamp%1000000000).Format("2006-01-02 15:04:05.000"))
}

// runPubsubSubscriber is the second of the programs; there it is main.
func runPubsubSubscriber(dial func() (net.Conn, error), subscribed chan<- bool, end <-chan int) {
	client, err := pubsub.NewClient(dial)
	if err != nil {
		panic(err)
	}
	client.Password = password

	// authentication
	err = client.Authenticate()
	if err != nil {
		panic(err)
	}

	// subscribe topic
	if err := client.Subscribe(topicName, onTopic, time.Second*10); err != nil {
		panic(err)
	}

	subscribed <- true
	<-end
	client.Stop()
}

// lines is a logger that keeps what it is told.
type lines struct {
	log.Logger
	got chan string
}

func (l lines) Info(format string, v ...any) { send(l.got, sprintf(format, v...)) }

func TestPubsubSubscriber(t *testing.T) {
	address, tick := startPubsubServer(t)
	logger := lines{log.DefaultLogger, make(chan string, 100)}
	log.SetLogger(logger)
	t.Cleanup(func() { log.SetLogger(logger.Logger) })
	subscribed, end, ended := make(chan bool), make(chan int), make(chan struct{})
	go func() {
		defer close(ended)
		runPubsubSubscriber(dialUntilListening(address), subscribed, end)
	}()
	t.Cleanup(func() {
		close(end)
		recv(t, ended, "end of the subscriber")
	})
	recv(t, subscribed, "subscription")
	tick <- time.Time{}
	want := regexp.MustCompile(`^\[OnTopic\] \[Broadcast\] "message from server 0", \[20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.\d\d\d\]$`)
	for {
		if line := recv(t, logger.got, "line for the message"); want.MatchString(line) {
			return
		}
	}
}
