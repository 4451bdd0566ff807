// kafkajs against a live node: node referee.js '{"address", "user", "token", "ca", "topic"}'. Prints what it saw as one line of JSON.
"use strict";
const fs = require("fs");
const { CompressionTypes, Kafka, logLevel } = require("kafkajs");
const { version } = require("kafkajs/package.json");

const asked = JSON.parse(process.argv[2]);
const secure = asked.token
  ? { ssl: { ca: [fs.readFileSync(asked.ca)] }, sasl: { mechanism: "plain", username: asked.user, password: asked.token } }
  : {};
const kafka = new Kafka({ clientId: "referee", brokers: [asked.address], logLevel: logLevel.NOTHING, ...secure });
const group = `${asked.topic}-group`;
const RECORDS = 200;

async function produce() {
  const producer = kafka.producer({ idempotent: true, maxInFlightRequests: 1 });
  await producer.connect();
  for (const compression of [CompressionTypes.None, CompressionTypes.GZIP]) {
    const messages = [];
    for (let number = 0; number < RECORDS / 2; number++) {
      messages.push({ key: `key-${number}`, value: `${compression}-${number}`, headers: { trace: Buffer.from([0, 255]) } });
    }
    await producer.send({ topic: asked.topic, compression, messages });
  }
  await producer.disconnect();
}

async function transact() {
  const producer = kafka.producer({ transactionalId: `${asked.topic}-t`, maxInFlightRequests: 1, idempotent: true });
  await producer.connect();
  for (const end of ["commit", "abort"]) {
    const transaction = await producer.transaction();
    await transaction.send({ topic: asked.topic, messages: [{ key: end, value: end }] });
    await transaction[end]();
  }
  await producer.disconnect();
}

// Two members share the group until every committed record was seen; then both leave.
async function consume(wanted) {
  const seen = new Set();
  let done;
  const all = new Promise((resolve) => (done = resolve));
  const members = [];
  for (let number = 0; number < 2; number++) {
    const member = kafka.consumer({ groupId: group, readUncommitted: false, maxWaitTimeInMs: 100 });
    await member.connect();
    await member.subscribe({ topics: [asked.topic], fromBeginning: true });
    await member.run({
      eachMessage: async ({ message }) => {
        seen.add(message.value.toString());
        if (seen.size >= wanted) done();
      },
    });
    members.push(member);
  }
  await all;
  for (const member of members) await member.disconnect();
  return [...seen];
}

async function main() {
  const admin = kafka.admin();
  await admin.connect();
  await admin.createTopics({ topics: [{ topic: asked.topic, numPartitions: 3 }], waitForLeaders: true });
  await produce();
  await transact();
  const seen = await consume(RECORDS + 1);
  const [{ partitions }] = await admin.fetchOffsets({ groupId: group, topics: [asked.topic] });
  const ends = await admin.fetchTopicOffsets(asked.topic);
  const { groups } = await admin.listGroups();
  await admin.deleteGroups([group]);
  await admin.deleteTopics({ topics: [asked.topic] });
  const topics = await admin.listTopics();
  await admin.disconnect();
  const committed = partitions.reduce((sum, place) => sum + Math.max(0, Number(place.offset)), 0);
  const end = ends.reduce((sum, place) => sum + Number(place.high), 0);
  const listed = groups.some((each) => each.groupId === group);
  console.log(JSON.stringify({ version, seen, committed, end, listed, deleted: !topics.includes(asked.topic) }));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
