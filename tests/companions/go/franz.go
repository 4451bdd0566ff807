package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
)

func franzOptions(a asked, more ...kgo.Opt) []kgo.Opt {
	options := []kgo.Opt{kgo.SeedBrokers(a.Address), kgo.ClientID("referee")}
	if a.Token != "" {
		options = append(options, kgo.DialTLSConfig(a.tls()), kgo.SASL(plain.Auth{User: a.User, Pass: a.Token}.AsMechanism()))
	}
	return append(options, more...)
}

func franz(a asked) saw {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	group := a.Topic + "-group"
	client, err := kgo.NewClient(franzOptions(a)...)
	must(err)
	admin := kadm.NewClient(client)
	created, err := admin.CreateTopics(ctx, 3, 1, nil, a.Topic)
	must(err)
	must(created[a.Topic].Err)
	franzProduce(ctx, a)
	franzTransact(ctx, a)
	seen := franzConsume(ctx, a, group)
	answer := saw{Version: version("github.com/twmb/franz-go"), Seen: seen}
	offsets, err := admin.FetchOffsets(ctx, group)
	must(err)
	offsets.Each(func(place kadm.OffsetResponse) { answer.Committed += place.At })
	ends, err := admin.ListEndOffsets(ctx, a.Topic)
	must(err)
	ends.Each(func(place kadm.ListedOffset) { answer.End += place.Offset })
	groups, err := admin.ListGroups(ctx)
	must(err)
	_, answer.Listed = groups[group]
	_, err = admin.DeleteGroup(ctx, group)
	must(err)
	_, err = admin.DeleteTopics(ctx, a.Topic)
	must(err)
	topics, err := admin.ListTopics(ctx)
	must(err)
	answer.Deleted = !topics.Has(a.Topic)
	client.Close()
	return answer
}

func franzProduce(ctx context.Context, a asked) {
	codecs := []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()}
	for round, codec := range codecs {
		client, err := kgo.NewClient(franzOptions(a, kgo.ProducerBatchCompression(codec), kgo.DefaultProduceTopic(a.Topic))...)
		must(err)
		for number := 0; number < records/len(codecs); number++ {
			record := kgo.KeySliceRecord([]byte(fmt.Sprint("key-", number)), []byte(fmt.Sprint(round, "-", number)))
			record.Headers = []kgo.RecordHeader{{Key: "trace", Value: []byte{0, 255}}}
			client.Produce(ctx, record, func(_ *kgo.Record, err error) { must(err) })
		}
		must(client.Flush(ctx))
		client.Close()
	}
}

func franzTransact(ctx context.Context, a asked) {
	client, err := kgo.NewClient(franzOptions(a, kgo.TransactionalID(a.Topic+"-t"), kgo.DefaultProduceTopic(a.Topic))...)
	must(err)
	for name, end := range map[string]kgo.TransactionEndTry{"commit": kgo.TryCommit, "abort": kgo.TryAbort} {
		must(client.BeginTransaction())
		must(client.ProduceSync(ctx, kgo.StringRecord(name)).FirstErr())
		must(client.EndTransaction(ctx, end))
	}
	client.Close()
}

// Two members share the group until every committed record was seen and committed; then both leave.
func franzConsume(ctx context.Context, a asked, group string) []string {
	values := make(chan string)
	polling, stop := context.WithCancel(ctx)
	var members sync.WaitGroup
	for member := 0; member < 2; member++ {
		client, err := kgo.NewClient(franzOptions(a, kgo.ConsumerGroup(group), kgo.ConsumeTopics(a.Topic), kgo.DisableAutoCommit(),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))...)
		must(err)
		members.Add(1)
		go func() {
			defer members.Done()
			for polling.Err() == nil {
				client.PollFetches(polling).EachRecord(func(record *kgo.Record) { values <- string(record.Value) })
				must(client.CommitUncommittedOffsets(ctx))
			}
			client.Close()
		}()
	}
	seen := distinct(values, records+1)
	stop()
	go func() { members.Wait(); close(values) }()
	for range values { // what came twice
	}
	return seen
}
