package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/IBM/sarama"
)

func saramaConfig(a asked) *sarama.Config {
	config := sarama.NewConfig()
	config.ClientID = "referee"
	config.Producer.Return.Successes = true
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.Idempotent = true
	config.Net.MaxOpenRequests = 1
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.IsolationLevel = sarama.ReadCommitted
	config.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{sarama.NewBalanceStrategySticky()}
	if a.Token != "" {
		config.Net.TLS.Enable, config.Net.TLS.Config = true, a.tls()
		config.Net.SASL.Enable, config.Net.SASL.User, config.Net.SASL.Password = true, a.User, a.Token
	}
	return config
}

func withSarama(a asked) saw {
	group := a.Topic + "-group"
	client, err := sarama.NewClient([]string{a.Address}, saramaConfig(a))
	must(err)
	admin, err := sarama.NewClusterAdminFromClient(client)
	must(err)
	must(admin.CreateTopic(a.Topic, &sarama.TopicDetail{NumPartitions: 3, ReplicationFactor: 1}, false))
	must(client.RefreshMetadata(a.Topic))
	saramaProduce(a)
	saramaTransact(a)
	answer := saw{Version: version("github.com/IBM/sarama"), Seen: saramaConsume(a, group)}
	offsets, err := admin.ListConsumerGroupOffsets(group, map[string][]int32{a.Topic: {0, 1, 2}})
	must(err)
	for partition := int32(0); partition < 3; partition++ {
		answer.Committed += max(0, offsets.GetBlock(a.Topic, partition).Offset)
		end, err := client.GetOffset(a.Topic, partition, sarama.OffsetNewest)
		must(err)
		answer.End += end
	}
	groups, err := admin.ListConsumerGroups()
	must(err)
	_, answer.Listed = groups[group]
	must(admin.DeleteConsumerGroup(group))
	must(admin.DeleteTopic(a.Topic))
	topics, err := admin.ListTopics()
	must(err)
	_, there := topics[a.Topic]
	answer.Deleted = !there
	must(admin.Close())
	return answer
}

func saramaProduce(a asked) {
	codecs := []sarama.CompressionCodec{sarama.CompressionNone, sarama.CompressionGZIP, sarama.CompressionSnappy, sarama.CompressionLZ4, sarama.CompressionZSTD}
	for round, codec := range codecs {
		config := saramaConfig(a)
		config.Producer.Compression = codec
		producer, err := sarama.NewSyncProducer([]string{a.Address}, config)
		must(err)
		messages := make([]*sarama.ProducerMessage, records/len(codecs))
		for number := range messages {
			messages[number] = &sarama.ProducerMessage{
				Topic:   a.Topic,
				Key:     sarama.StringEncoder(fmt.Sprint("key-", number)),
				Value:   sarama.StringEncoder(fmt.Sprint(round, "-", number)),
				Headers: []sarama.RecordHeader{{Key: []byte("trace"), Value: []byte{0, 255}}},
			}
		}
		must(producer.SendMessages(messages))
		must(producer.Close())
	}
}

func saramaTransact(a asked) {
	config := saramaConfig(a)
	config.Producer.Transaction.ID = a.Topic + "-t"
	producer, err := sarama.NewSyncProducer([]string{a.Address}, config)
	must(err)
	for name, end := range map[string]func() error{"commit": producer.CommitTxn, "abort": producer.AbortTxn} {
		must(producer.BeginTxn())
		_, _, err := producer.SendMessage(&sarama.ProducerMessage{Topic: a.Topic, Value: sarama.StringEncoder(name)})
		must(err)
		must(end())
	}
	must(producer.Close())
}

type reader struct{ values chan<- string }

func (reader) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (reader) Cleanup(sarama.ConsumerGroupSession) error { return nil }
func (r reader) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for message := range claim.Messages() {
		session.MarkMessage(message, "")
		r.values <- string(message.Value)
	}
	return nil
}

// Two members share the group until every committed record was seen; then both leave, which commits.
func saramaConsume(a asked, group string) []string {
	values := make(chan string)
	ctx, stop := context.WithCancel(context.Background())
	var members sync.WaitGroup
	for member := 0; member < 2; member++ {
		consumer, err := sarama.NewConsumerGroup([]string{a.Address}, group, saramaConfig(a))
		must(err)
		members.Add(1)
		go func() {
			defer members.Done()
			for ctx.Err() == nil {
				must(consumer.Consume(ctx, []string{a.Topic}, reader{values}))
			}
			must(consumer.Close())
		}()
	}
	seen := distinct(values, records+1)
	stop()
	go func() { members.Wait(); close(values) }()
	for range values { // what came twice
	}
	return seen
}
